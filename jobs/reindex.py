"""``raypq reindex`` as a Ray job, to be run every night.

ray job submit --working-dir . -- python jobs/reindex.py --config jobs/configs/reindex.yaml
"""

from raypq import api
from raypq.config import ReindexJob

if __name__ == "__main__":
    api.run_job(ReindexJob, api.reindex)
