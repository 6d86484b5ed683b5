"""``raypq search`` as a Ray job.

ray job submit --working-dir . -- python jobs/search.py --config jobs/configs/search.yaml
"""

from raypq import api
from raypq.config import SearchJob

if __name__ == "__main__":
    api.run_job(SearchJob, api.search)
