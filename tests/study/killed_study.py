"""Runs a small study on digits, for the test that kills it: python killed_study.py FOLDER."""

import sys
from pathlib import Path

import torch

from sslfast.study.config import LabelFractionsConfig
from sslfast.study.images import load_images
from sslfast.study.label_fractions import run_label_fractions

CONFIG = LabelFractionsConfig(
    data="digits",
    images=300,
    test_images=100,
    arms=("autoencoder",),
    labelled=(0.5,),
    unlabelled=(0.5, 1.0),
    pretrain_epochs=2,
    pretrain_batch_size=32,
    epochs=3,
    batch_size=32,
    dtype="float32",
)


def main() -> None:
    torch.set_num_threads(1)
    run_label_fractions(CONFIG, load_images(CONFIG, None), Path(sys.argv[1]), resume=True, device="cpu")


if __name__ == "__main__":
    main()
