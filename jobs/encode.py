"""``raypq encode`` as a Ray job.

ray job submit --working-dir . -- python jobs/encode.py --config jobs/configs/encode.yaml
"""

from raypq import api
from raypq.config import EncodeJob

if __name__ == "__main__":
    api.run_job(EncodeJob, api.encode)
