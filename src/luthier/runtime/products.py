"""float32 products on a processor through oneDNN, where torch's own choice of kernels is the slower one.

torch multiplies float32 matrices with MKL, whose kernels for processors not made by Intel leave AVX-512 unused. oneDNN
uses it: on an AMD EPYC (Zen 5) a product takes half the time. torch's switch for this is named after what oneDNN may
do at most, not after what it does here: without tile instructions (AMX) there is nothing shorter than float32 that it
would take, and `use_quick_products` proves that before it leaves the switch on. It decides by the processor alone and
never by a clock, so a run repeats bit for bit on its machine. It knows no model and no training.
"""

from __future__ import annotations

from typing import Any

import torch

_SWITCH: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
TOLERANCE = 1e-6
"""Largest error of a product as a share of |x| |w| (length K): float32 sums give about 1e-7, bfloat16 inputs 1e-3."""


def use_quick_products() -> bool:
    """Switch this process's float32 products to oneDNN if that keeps float32. Returns whether it did."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if torch.cpu._is_amx_tile_supported() or _vendor() == "GenuineIntel":
        return False
    before = _SWITCH.fp32_precision
    _SWITCH.fp32_precision = "bf16"
    if _error() <= TOLERANCE:
        return True
    _SWITCH.fp32_precision = before
    return False


def quick_products() -> bool:
    """Whether this process's float32 products go through oneDNN."""
    return bool(_SWITCH.fp32_precision == "bf16")


def _error() -> float:
    """The largest error of products in the shapes of a forward and a backward pass, as a share of |x| |w|."""
    made = torch.Generator().manual_seed(0)
    x_NK, w_MK = (torch.randn(size, 384, generator=made) for size in (96, 160))
    exact_NM = x_NK.double() @ w_MK.double().T
    size_NM = x_NK.double().norm(dim=1)[:, None] * w_MK.double().norm(dim=1)
    found = (
        torch.nn.functional.linear(x_NK, w_MK),
        x_NK @ w_MK.T.contiguous(),
        torch.addmm(torch.zeros(160), x_NK, w_MK.T),
    )
    return max(float(((one.double() - exact_NM).abs() / size_NM).max()) for one in found)


def _vendor() -> str:
    """The processor's maker as Linux names it; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            return next((line.split(":")[1].strip() for line in stream if line.startswith("vendor_id")), "")
    except OSError:
        return ""
