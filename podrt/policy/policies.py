"""`Policy`: what a caller may fix of which kernels run and how they share the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from podrt.errors import UnsupportedConfigError
from podrt.kernels.portable.presets import Shape

_MAX_SHARE = 64
_MAX_ONLY = 1024


@dataclass(frozen=True)
class Policy:
    """Which kernels run, and how the SMs are shared.

    Attributes
    ----------
    family : {"auto", "portable", "hopper"}
        Kernel family; ``"auto"`` takes the Hopper family where it has a kernel for the layer.
    ratio : (int, int) or None
        Fixed prefill:decode ratio of the portable family; None follows the work on each side.
    serial : bool
        One launch per side instead of a fused one.
    shape : {"large", "small"} or None
        Shape of the portable family's tiles; None takes the large ones.
    limit_splits : bool
        Whether prefill is split over its keys only as far as that pays beside decodes.
    decode_only_sms : int or None
        SMs of a fused Hopper launch that take no prefill before decode has run out; None follows
        the work on each side.
    prefill_only_sms : int
        The same with the sides exchanged.
    """

    family: Literal["auto", "portable", "hopper"] = "auto"
    ratio: tuple[int, int] | None = None
    serial: bool = False
    shape: Shape | None = None
    limit_splits: bool = True
    decode_only_sms: int | None = None
    prefill_only_sms: int = 0


_NAMED = {
    "auto": Policy(),
    "serial": Policy(serial=True),
    "hopper": Policy(family="hopper"),
    "hopper-serial": Policy(family="hopper", serial=True),
    "portable": Policy(family="portable"),
    "portable-serial": Policy(family="portable", serial=True),
    "proportional": Policy(family="portable"),
    "50:50": Policy(family="portable", ratio=(1, 1)),
    "ctas=2": Policy(family="portable", shape="large"),
    "ctas=4": Policy(family="portable", shape="small"),
    "splits=vanilla": Policy(family="portable", limit_splits=False),
}


def parse_policy(policy: str) -> Policy:
    """Read a `policy` argument: a name, a ratio such as ``"1:3"``, or SMs of one side.

    ``"auto"``: the Hopper family where it can serve the layer, else the portable one, and one
    launch after the other where decode is too little to be worth hiding behind a long prefill.
    ``"hopper"``, ``"portable"``: that family. ``"serial"``, ``"hopper-serial"``,
    ``"portable-serial"``: one launch after the other, for comparison. The portable family shares an
    SM's CTAs by the amount of work on each side; ``"50:50"`` or a prefill:decode ratio such as
    ``"1:3"`` fixes their share, ``"ctas=2"`` or ``"ctas=4"`` the CTAs of an SM (on smaller GPUs
    than an A100 fewer may fit), and ``"splits=vanilla"`` splits prefill without regard to the
    decodes beside it. In the Hopper family ``"decode-only=24"`` has so many SMs take no prefill
    before decode has run out, and ``"prefill-only=24"`` the same with the sides exchanged.

    Raises
    ------
    UnsupportedConfigError
        It is none of these; the message lists them.
    """
    if policy in _NAMED:
        return _NAMED[policy]
    name, _, number = str(policy).partition("=")
    if number.isdecimal() and int(number) <= _MAX_ONLY:
        if name == "decode-only":
            return Policy(family="hopper", decode_only_sms=int(number))
        if name == "prefill-only":
            return Policy(family="hopper", decode_only_sms=0, prefill_only_sms=int(number))
    prefill, colon, decode = str(policy).partition(":")
    if colon and prefill.isdecimal() and decode.isdecimal():
        ratio = int(prefill), int(decode)
        if min(ratio) >= 1 and max(ratio) <= _MAX_SHARE:
            return Policy(family="portable", ratio=ratio)
    raise UnsupportedConfigError(
        f"policy={policy!r}: allowed are {', '.join(map(repr, _NAMED))}, "
        f'"decode-only=N" or "prefill-only=N" of N SMs from 0 to {_MAX_ONLY}, or a '
        f'prefill:decode ratio "P:D" of numbers from 1 to {_MAX_SHARE}'
    )
