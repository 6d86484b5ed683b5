"""``raypq train`` as a Ray job.

ray job submit --working-dir . -- python jobs/train.py --config jobs/configs/train.yaml
"""

from raypq import api
from raypq.config import TrainJob

if __name__ == "__main__":
    api.run_job(TrainJob, api.train)
