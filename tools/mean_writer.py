"""The mean of several adapters of the writer, weight by weight.

    python tools/mean_writer.py A B --shares 0.3 0.7 --output MEAN

An adapter that went on learning (`tools/train_writer.py --start`) forgets some of what the one before could; their mean
keeps much of both (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903). It takes that both come from one start, and
have the same rank and layers. MEAN is an adapter like those of `train_writer.py`, and can be its `--start`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "adapter_model.safetensors"


def arguments() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", type=Path, nargs="+", help="folders of finished adapters")
    parser.add_argument("--shares", type=float, nargs="+", help="of each adapter, 1 in sum; without it equal shares")
    parser.add_argument("--output", type=Path, required=True, help="folder of the mean")
    args = parser.parse_args()
    args.shares = args.shares or [1 / len(args.adapters)] * len(args.adapters)
    if len(args.shares) != len(args.adapters) or not math.isclose(sum(args.shares), 1):
        parser.error(f"--shares {args.shares}: give one for each of the {len(args.adapters)} adapters, 1 in sum")
    return args


def mean(files: list[Path], shares: list[float]) -> dict[str, torch.Tensor]:
    """The mean of the tensors of adapters, in bfloat16.

    Raises:
        SystemExit: Their tensors have other names or shapes.
    """
    tensors = [load_file(file) for file in files]
    shapes = [{name: value.shape for name, value in each.items()} for each in tensors]
    for file, shape in zip(files[1:], shapes[1:], strict=True):
        if shape != shapes[0]:
            raise SystemExit(f"{file}: other layers or another rank than {files[0]}; only like adapters have a mean")
    pairs = list(zip(shares, tensors, strict=True))
    return {
        name: torch.stack([share * each[name].float() for share, each in pairs]).sum(0).to(torch.bfloat16).contiguous()
        for name in tensors[0]
    }


def main() -> None:
    """Writes the mean and what is known of it."""
    args = arguments()
    files = [folder / WEIGHTS for folder in args.adapters]
    known = [json.loads((folder / "writer.json").read_text(encoding="utf-8")) for folder in args.adapters]
    facts: dict[str, Any] = {key: value for key, value in known[-1].items() if key != "held_out"}
    facts["mean"] = [
        {"share": share, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        | ({"mean": before["mean"]} if "mean" in before else {})
        for share, file, before in zip(args.shares, files, known, strict=True)
    ]
    values = mean(files, args.shares)
    args.output.mkdir(parents=True, exist_ok=True)
    save_file(values, args.output / WEIGHTS, metadata={"format": "pt"})
    shutil.copyfile(args.adapters[-1] / "adapter_config.json", args.output / "adapter_config.json")
    (args.output / "writer.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
