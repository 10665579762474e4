"""What tensor slicing refuses of stock's options."""

from __future__ import annotations

from argparse import Namespace

import pytest
from checkpoint.exported import SMALL

from zcode_plugin.errors import UserError
from zcode_plugin.models.architectures import TINY, fill
from zcode_plugin.models.sliced_checks import check_sliced


def sliced(**options: object) -> Namespace:
    args = Namespace(**{**SMALL, **options}, model_parallel_size=2)
    fill(args, TINY)
    return args


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_bmuf": True}, "--use-bmuf cannot go with --model-parallel-size 2, whose slices"),
        ({"amp": True}, "--amp cannot go with --model-parallel-size 2, whose slices"),
        ({"ddp_backend": "slowmo"}, "--ddp-backend slowmo cannot go with --model-parallel-size 2,"),
        ({"keep_best_checkpoints": 2}, "stock does not find the score in the names of slices"),
    ],
)
def test_refused(options: dict[str, object], message: str) -> None:
    check_sliced(sliced())
    with pytest.raises(UserError, match=message):
        check_sliced(sliced(**options))


def test_files_of_ranks_have_names_that_stock_reads() -> None:
    check_sliced(sliced(keep_best_checkpoints=2, expert_parallel_size=2))
