"""`Policy`: what a caller may fix of which kernels run and how they share the GPU."""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from podrt.errors import UnsupportedConfigError
from podrt.kernels.hopper.config import DECODE_ROWS
from podrt.kernels.portable.presets import Shape

Family = Literal["auto", "portable", "hopper"]
PrefillOrder = Literal["head", "length"]

_MAX_SHARE = 64
_MAX_ONLY = 1024
#: KV tiles of decode, of any family, divide so many keys.
_PIECE_STEP = 128
_MAX_PIECE_KEYS = 2**20
_MAX_PARTIAL_BYTES = 2**31
_TILE_STEP = 16
_MAX_TILE_KEYS = 256
_MAX_RING = 64

#: Fields that one family alone has.
_OF_FAMILY: dict[str, Family] = {
    "ratio": "portable",
    "shape": "portable",
    "decode_only_sms": "hopper",
    "prefill_only_sms": "hopper",
    "decode_rows": "hopper",
    "large_prefill_tile": "hopper",
    "head_pairs": "hopper",
}
#: Those that may be False whatever the family, which then has not what others lack anyway.
_MAY_BE_RULED_OUT = ("head_pairs",)
#: Fields that share out a fused launch.
_SHARES = ("ratio", "decode_only_sms", "prefill_only_sms")
#: Fields that say how a batch's splits follow from all of it.
_OF_BATCH = ("limit_splits", "taper_decode", "max_partial_bytes")
_FLAGS = ("serial", "large_prefill_tile", "head_pairs", "limit_splits", "taper_decode")
#: Least and most of the fields that are numbers.
_RANGES = {
    "decode_only_sms": (0, _MAX_ONLY),
    "prefill_only_sms": (0, _MAX_ONLY),
    "decode_piece_keys": (_PIECE_STEP, _MAX_PIECE_KEYS),
    "max_partial_bytes": (0, _MAX_PARTIAL_BYTES),
    "prefill_tile_keys": (_TILE_STEP, _MAX_TILE_KEYS),
    "prefill_ring": (2, _MAX_RING),
    "decode_ring": (2, _MAX_RING),
}
#: What some of them are multiples of.
_STEPS = {"decode_piece_keys": _PIECE_STEP, "prefill_tile_keys": _TILE_STEP}


class FixedTiles(NamedTuple):
    """What a `Policy` fixes of tiles and rings; None where the kernels' usual ones stay."""

    prefill_tile_keys: int | None
    prefill_ring: int | None
    decode_ring: int | None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Which kernels run, how they share the SMs, how keys are split, and in which order work goes.

    Every field but `family` is None unless fixed: it then follows the batch and the GPU. What is
    fixed holds for every batch, or is refused; results are the same whatever is fixed.

    Parameters
    ----------
    family : {"auto", "portable", "hopper"}
        Kernel family; ``"auto"`` takes the Hopper family where it has a kernel for the layer, else
        the portable one. Fields of one family alone, which are marked below, need that family.
    serial : bool, optional
        True launches the sides of a batch one after the other, False always in one fused launch. If
        None, batches are fused but for a long prefill beside so little decode that the tiles of
        prefill alone gain more; with `ratio`, `decode_only_sms` or `prefill_only_sms`, which share
        out a fused launch and cannot be fixed beside True, all are fused.
    ratio : (int, int), optional
        Portable family: of every P + D CTAs of a fused launch on an SM, P take prefill; each 1 to
        64. If None, the ratio nearest to the work on each side.
    shape : {"large", "small"}, optional
        Portable family: tiles of two CTAs of four warps to an SM, or of four CTAs of two. If None,
        the large ones.
    decode_only_sms, prefill_only_sms : int, optional
        Hopper family: SMs of a fused launch that take one side alone while it has work, 0 to 1024;
        more than the GPU has mean all. Where one of them is fixed, the other is 0 unless fixed too.
        If both are None, they follow the work on each side.
    decode_rows : {8, 16, 32}, optional
        Hopper family: packed query rows of a decode tile. Requests whose tokens, times the query
        heads per KV head, fit one tile are decodes, and so are all of one token. If None, the
        smallest tile that nearly all decodes of a batch fit, or `max_decode_tokens` of
        `HybridAttention.reserve`.
    large_prefill_tile : bool, optional
        Hopper family: whether prefill that is launched alone has tiles of 176 keys or of 128; True
        needs head_dim 80, 96, 112 or 128. If None, the large ones for units of many keys.
    head_pairs : bool, optional
        Hopper family: whether a unit of decode is two neighbouring KV heads, where these lie side
        by side in the caches; tiles of 32 rows have one in any case. True needs head_dim 96,
        ``kv_layout="NHD"``, an even number of KV heads and no pages that are gathered row by row.
        False is for any family. If None, two where the layer is like that.
    prefill_tile_keys, prefill_ring, decode_ring : int, optional
        Of the family that is named: keys of a prefill tile, and how many tiles the rings of prefill
        and of decode hold in shared memory, at most where lanes decode in the place of prefill
        tiles. A variant that registers or shared memory have no room for is refused when the first
        batch is planned; one that compiles is right, but may spill registers. They are for
        experiments (``podrt explore sweep``). If None, those that were measured best.
    limit_splits : bool, optional
        Whether keys of prefill are split only as far as that pays beside decodes; False splits as
        if there were none (FlashAttention-2's rule, the "vanilla" one of POD-Attention). If None,
        True.
    decode_piece_keys : int, optional
        Most keys of one piece of a decode, alone and beside prefill: a multiple of 128. Pieces are
        longer where partial results would not fit `max_partial_bytes`. If None, what was measured
        best for the family.
    taper_decode : bool, optional
        Whether the pieces of decode that are handed out last beside prefill are cut finer; not
        beside ``serial=True``. If None, what was measured best for the family.
    prefill_order : {"head", "length"}, optional
        Order of prefill units: ``"head"`` goes request by request and in each head by head,
        ``"length"`` longest first over all heads. If None, by head where the keys of all heads do
        not stay in L2, with some short units kept for the end, unless all units run at once and
        decode does not take much longer.
    max_partial_bytes : int, optional
        Most memory for partial outputs of split keys, 0 to 2^31; 0 splits nothing. If None, 64 MiB.
    autotuned : bool
        Take what was measured to be the fastest on this GPU for batches like this one
        (``podrt tune --shapes`` or ``--trace``), and where nothing was, follow the rules. It
        decides over `serial`, `ratio`, `decode_only_sms` and `prefill_only_sms`, of which none may
        be fixed beside it. After `HybridAttention.reserve` only what is one launch counts. Nothing
        is ever measured by a plan, a run or a capture.
    deterministic : bool
        The bits of a request's results do not depend on what else is in the batch: the same kernels
        whatever the batch (one fused launch, or with ``serial=True`` one for each side), the
        smallest decode tile that holds a token, or `decode_rows`, and the keys of each request
        split by its own lengths, those of decodes at `decode_piece_keys` if fixed. `limit_splits`,
        `taper_decode`, `max_partial_bytes` and `autotuned` do not go with it.
        ``docs/contract.md`` says what holds and what it costs.

    Raises
    ------
    UnsupportedConfigError
        A choice that there is not, or fields that do not go together.
    ValueError, TypeError
        A number out of its range, or a value of another type.
    """

    family: Family = "auto"
    serial: bool | None = None
    ratio: tuple[int, int] | None = None
    shape: Shape | None = None
    decode_only_sms: int | None = None
    prefill_only_sms: int | None = None
    decode_rows: int | None = None
    large_prefill_tile: bool | None = None
    head_pairs: bool | None = None
    prefill_tile_keys: int | None = None
    prefill_ring: int | None = None
    decode_ring: int | None = None
    limit_splits: bool | None = None
    decode_piece_keys: int | None = None
    taper_decode: bool | None = None
    prefill_order: PrefillOrder | None = None
    max_partial_bytes: int | None = None
    autotuned: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in _FLAGS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool):
                raise TypeError(f"{name}={value!r}: expected True, False or None")
        for name in ("autotuned", "deterministic"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}={getattr(self, name)!r}: expected True or False")
        _require_choice("family", self.family, get_args(Family))
        _require_choice("shape", self.shape, (None, *get_args(Shape)))
        _require_choice("prefill_order", self.prefill_order, (None, *get_args(PrefillOrder)))
        self._set("decode_rows", _whole("decode_rows", self.decode_rows))
        _require_choice("decode_rows", self.decode_rows, (None, *DECODE_ROWS))
        for name, (least, most) in _RANGES.items():
            number = _whole(name, getattr(self, name))
            if number is not None and not least <= number <= most:
                raise ValueError(f"{name}={number}: must be from {least} to {most}, or None")
            if number is not None and number % _STEPS.get(name, 1):
                raise ValueError(f"{name}={number}: must be a multiple of {_STEPS[name]}")
            self._set(name, number)
        self._set("ratio", _checked_ratio(self.ratio))
        self._check_together()

    def __repr__(self) -> str:
        """Show what is fixed."""
        values = ((field.name, getattr(self, field.name), field.default) for field in fields(self))
        fixed = (f"{name}={value!r}" for name, value, default in values if value != default)
        return f"Policy({', '.join(fixed)})"

    @property
    def may_part(self) -> bool:
        """Whether the sides of a batch may get a launch each where that is faster."""
        return self.serial is None and not self._fixed(_SHARES) and not self.deterministic

    @property
    def tiles(self) -> FixedTiles:
        """What is fixed of tiles and rings, which every family has in its own way."""
        return FixedTiles(self.prefill_tile_keys, self.prefill_ring, self.decode_ring)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _fixed(self, names: tuple[str, ...]) -> list[str]:
        return [name for name in names if getattr(self, name) is not None]

    def _check_together(self) -> None:
        if self.deterministic:
            for name in ("autotuned",) if self.autotuned else self._fixed(_OF_BATCH):
                raise UnsupportedConfigError(
                    f"{name}={getattr(self, name)!r}: goes by all of a batch, which "
                    "deterministic=True rules out; leave it out"
                )
        for name in self._fixed((*_SHARES, "serial")) if self.autotuned else ():
            raise UnsupportedConfigError(
                f"{name}={getattr(self, name)!r}: is what autotuned=True decides; leave it at None"
            )
        for name in self._fixed(tuple(_OF_FAMILY)):
            family = _OF_FAMILY[name]
            is_ruled_out = name in _MAY_BE_RULED_OUT and getattr(self, name) is False
            if self.family != family and not is_ruled_out:
                raise UnsupportedConfigError(
                    f"{name}={getattr(self, name)!r}: is of the {family.capitalize()} family, but "
                    f'family={self.family!r}; pass family="{family}", or leave {name} at None'
                )
        for name in self._fixed(FixedTiles._fields) if self.family == "auto" else ():
            raise UnsupportedConfigError(
                f"{name}={getattr(self, name)!r}: is another thing in every family; pass "
                f'family="hopper" or "portable", or leave it at None'
            )
        if self.large_prefill_tile is not None and self.prefill_tile_keys is not None:
            raise UnsupportedConfigError(
                f"large_prefill_tile={self.large_prefill_tile!r}: says which of the usual tiles "
                f"prefill has, but prefill_tile_keys={self.prefill_tile_keys}; leave one at None"
            )
        for name in self._fixed((*_SHARES, "taper_decode")):
            if self.serial:
                raise UnsupportedConfigError(
                    f"{name}={getattr(self, name)!r}: is of fused launches, but serial=True; leave "
                    f"one of them at None"
                )


def _require_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not (value is None or isinstance(value, str | int)) or value not in allowed:
        raise UnsupportedConfigError(
            f"{name}={value!r}: allowed are {', '.join(map(repr, allowed))}"
        )


def _whole(name: str, value: Any) -> int | None:
    """Return an int of Python, NumPy or whatever else counts as one, but a bool."""
    if value is None:
        return None
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r}: expected an int or None") from None


def _checked_ratio(ratio: Any) -> tuple[int, int] | None:
    if ratio is None:
        return None
    if not isinstance(ratio, tuple) or len(ratio) != 2:
        raise TypeError(f"ratio={ratio!r}: expected a tuple of two ints, or None")
    prefill, decode = (_whole("ratio", share) for share in ratio)
    if prefill is None or decode is None:
        raise TypeError(f"ratio={ratio!r}: expected a tuple of two ints, or None")
    if not (1 <= prefill <= _MAX_SHARE and 1 <= decode <= _MAX_SHARE):
        raise ValueError(f"ratio={ratio!r}: each must be from 1 to {_MAX_SHARE}")
    return prefill, decode


_NAMED = {
    "auto": Policy(),
    "serial": Policy(serial=True),
    "autotuned": Policy(autotuned=True),
    "hopper": Policy(family="hopper", serial=False),
    "hopper-serial": Policy(family="hopper", serial=True),
    "portable": Policy(family="portable"),
    "portable-serial": Policy(family="portable", serial=True),
    "proportional": Policy(family="portable"),
    "50:50": Policy(family="portable", ratio=(1, 1)),
    "ctas=2": Policy(family="portable", shape="large"),
    "ctas=4": Policy(family="portable", shape="small"),
    "splits=vanilla": Policy(family="portable", limit_splits=False),
}


def parse_policy(policy: str | Policy) -> Policy:
    """Read a `policy` argument: a `Policy`, a name, a ratio such as ``"1:3"``, or SMs of one side.

    ``"auto"``: the Hopper family where it can serve the layer, else the portable one, and one
    launch after the other where decode is too little to be worth hiding behind a long prefill.
    ``"autotuned"``: what ``podrt tune --shapes`` or ``--trace`` measured to be the fastest for such
    batches on this GPU, else as ``"auto"``. ``"hopper"``, ``"portable"``: that family, in one
    launch. ``"serial"``, ``"hopper-serial"``, ``"portable-serial"``: one launch after the other,
    for comparison. The portable family shares an SM's CTAs by the amount of work on each side;
    ``"50:50"`` or a prefill:decode ratio such as ``"1:3"`` fixes their share, ``"ctas=2"`` or
    ``"ctas=4"`` the CTAs of an SM (on smaller GPUs than an A100 fewer may fit), and
    ``"splits=vanilla"`` splits prefill without regard to the decodes beside it. In the Hopper
    family ``"decode-only=24"`` has so many SMs take no prefill before decode has run out, and
    ``"prefill-only=24"`` the same with the sides exchanged.

    Raises
    ------
    UnsupportedConfigError
        It is none of these; the message lists them.
    """
    if isinstance(policy, Policy):
        return policy
    text = policy if isinstance(policy, str) else ""
    if text in _NAMED:
        return _NAMED[text]
    name, _, number = text.partition("=")
    if number.isdecimal() and int(number) <= _MAX_ONLY:
        if name == "decode-only":
            return Policy(family="hopper", decode_only_sms=int(number))
        if name == "prefill-only":
            return Policy(family="hopper", prefill_only_sms=int(number))
    prefill, colon, decode = text.partition(":")
    if colon and prefill.isdecimal() and decode.isdecimal():
        ratio = int(prefill), int(decode)
        if min(ratio) >= 1 and max(ratio) <= _MAX_SHARE:
            return Policy(family="portable", ratio=ratio)
    raise UnsupportedConfigError(
        f"policy={policy!r}: allowed are {', '.join(map(repr, _NAMED))}, "
        f'"decode-only=N" or "prefill-only=N" of N SMs from 0 to {_MAX_ONLY}, a '
        f'prefill:decode ratio "P:D" of numbers from 1 to {_MAX_SHARE}, or a podrt.Policy'
    )


def policy_of(policy: str | Policy, deterministic: bool) -> Policy:
    """Read a `policy` argument as `parse_policy`, and set `Policy.deterministic` if asked to."""
    if not isinstance(deterministic, bool):
        raise TypeError(f"deterministic={deterministic!r}: expected True or False")
    parsed = parse_policy(policy)
    return replace(parsed, deterministic=True) if deterministic else parsed
