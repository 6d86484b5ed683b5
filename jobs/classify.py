"""``raypq classify`` as a Ray job.

ray job submit --working-dir . -- python jobs/classify.py --config jobs/configs/classify.yaml
"""

from raypq import api
from raypq.config import ClassifyJob

if __name__ == "__main__":
    api.run_job(ClassifyJob, api.classify)
