"""``raypq encode`` as a job: ``ray job submit --working-dir . -- python jobs/encode.py --config FILE``."""

from __future__ import annotations

import argparse

from raypq import api, console
from raypq.config import EncodeJob, read_mapping


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, such as jobs/configs/encode.yaml")
    path = parser.parse_args().config
    console.set_up()
    api.encode(EncodeJob.parse(read_mapping(path), origin=path))


if __name__ == "__main__":
    main()
