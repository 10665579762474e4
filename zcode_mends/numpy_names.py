"""Names and keywords that numpy dropped and fairseq still uses."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

from zcode_mends.mend import Mend, StandIn, version


def _is_needed(module: ModuleType) -> bool:
    return version(module.np.__version__) >= (1, 24)


def _percentile(values: Any, q: Any, interpolation: str) -> Any:
    import numpy

    return numpy.percentile(values, q, method=interpolation)  # type: ignore[call-overload]


def _see_old_names(module: ModuleType) -> None:
    module.np = StandIn(  # type: ignore[attr-defined]
        module.np,
        compat=SimpleNamespace(long=int),
        float=float,
        int=int,
        percentile=_percentile,
    )


NUMPY_NAMES = Mend(
    name="numpy-names",
    reason=(
        "numpy 1.24 dropped `np.float` and `np.int`, numpy 2 `np.compat` and the keyword "
        "`interpolation` of `np.percentile`: language modelling by sentence, --num-batch-buckets, "
        "span masks without overlap and the CRF layer use them"
    ),
    is_needed=_is_needed,
    apply=_see_old_names,
    after=(
        "fairseq.data.data_utils",
        "fairseq.data.language_pair_dataset",
        "fairseq.data.token_block_dataset",
        "fairseq.modules.dynamic_crf_layer",
    ),
)
