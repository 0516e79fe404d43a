"""Upload an encoder folder to a model hub, after its checksums and golden numbers were checked.

Needs a login (`hf auth login` or HF_TOKEN); HF_ENDPOINT names another hub.

example:
  fmct publish encoders/vit_small my-lab/ct-vit-small --dry-run
  fmct publish encoders/vit_small my-lab/ct-vit-small --private
"""

import argparse
from pathlib import Path

HELP = "encoder folder → a model hub"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("encoder", metavar="ENCODER", help="folder that `fmct export` wrote")
    parser.add_argument("repo_id", metavar="REPO_ID", help="owner/name on the hub; made when it does not exist")
    parser.add_argument("--dry-run", action="store_true", help="check and list what would be uploaded; no connection")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", help="branch to upload to; made when it does not exist")


def run(arguments: argparse.Namespace) -> int:
    """Upload and say where it is."""
    from fmct.publish.upload import upload

    done = upload(
        Path(arguments.encoder),
        arguments.repo_id,
        private=arguments.private,
        revision=arguments.revision,
        dry_run=arguments.dry_run,
    )
    for name, size in done.files:
        print(f"  {name:<20} {size:>14,} bytes")
    total = sum(size for _, size in done.files)
    if done.commit is None:
        print(f"{total:,} bytes would go to {arguments.repo_id}; self-test passed, nothing was sent.")
    else:
        print(
            f'{total:,} bytes are at {done.address}\nLoad it with: fmct.load_encoder("{arguments.repo_id}", '
            f'revision="{done.commit}")'
        )
    return 0
