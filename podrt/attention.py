"""The front door: `HybridAttention`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from podrt.gpu.device import DeviceInfo, current_device, device_info
from podrt.kernels.families import Variant
from podrt.plan import Plan
from podrt.policy.policies import parse_policy
from podrt.policy.schedule import Scheduler
from podrt.runtime.launch import launch, load_kernel
from podrt.runtime.workspace import Workspaces
from podrt.spec.attention import Layer, make_layer
from podrt.spec.batch import HybridBatch
from podrt.tensors.host import host_array
from podrt.tensors.page_table import (
    PageTable,
    make_batch,
    read_page_table,
    require_on_device,
    require_pages_exist,
)
from podrt.tensors.run_tensors import RunTensors, require_kernel_can_read, view_tensors
from podrt.tensors.streams import resolve_stream


@dataclass(frozen=True)
class _Planned:
    """What `HybridAttention.plan` leaves for `HybridAttention.run`.

    `checked_num_pages` holds the cache sizes against which the page table has been checked.
    """

    batch: HybridBatch
    page_table: PageTable | None
    plan: Plan
    variants: tuple[Variant, ...]
    checked_num_pages: set[int] = field(default_factory=set)


class HybridAttention:
    """Attention of batches that mix prefill chunks and decodes, in one launch each.

    Call `plan` once for a batch (host work: it reads the lengths), then `run` as often as there are
    layers. One object serves one layer shape on one device; its runs may be on several streams,
    and may be captured into CUDA graphs (keep the object alive as long as the graph).

    Parameters
    ----------
    num_qo_heads, num_kv_heads : int
        Query heads, a multiple of the KV heads.
    head_dim : int
        64, 128 or 256.
    page_size : int, optional
        Tokens of a page of the KV cache; None (the default) is a contiguous cache.
    kv_layout : {"NHD", "HND"}
        Order of the cache's axes: ``[pages, page_size, Hkv, D]`` or ``[pages, Hkv, page_size, D]``;
        likewise with ``[requests, length]`` for a contiguous cache.
    dtype : {"bfloat16", "float16"}
        Element type of q, the caches and the output.
    causal : bool
        Token t of a request sees keys 0 to ``kv_len - q_len + t``. Without it, all ``kv_len``.
    sm_scale : float, optional
        Factor on the scores before the softmax; ``head_dim ** -0.5`` if None.
    policy : str
        Which kernels run and how they share the SMs. ``"auto"``: the Hopper family where it can
        serve the layer, else the portable one, and one launch after the other where decode is too
        little to be worth hiding behind a long prefill. ``"hopper"``, ``"portable"``: that family.
        ``"serial"``, ``"hopper-serial"``, ``"portable-serial"``: one launch after the other, for
        comparison. The portable family shares an SM's CTAs by the amount of work on each side;
        ``"50:50"`` or a prefill:decode ratio such as ``"1:3"`` fixes their share, ``"ctas=2"`` or
        ``"ctas=4"`` the CTAs of an SM (on smaller GPUs than an A100 fewer may fit), and
        ``"splits=vanilla"`` splits prefill without regard to the decodes beside it. In the Hopper
        family ``"decode-only=24"`` has so many SMs take no prefill before decode has run out, and
        ``"prefill-only=24"`` the same with the sides exchanged.
    device : int, optional
        CUDA device number; the current device at the first `plan` if None.

    Raises
    ------
    UnsupportedConfigError
        A choice that podrt does not offer; the message says what it offers.
    ValueError, TypeError
        An argument that makes no sense.
    """

    def __init__(
        self,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        page_size: int | None = None,
        kv_layout: str = "NHD",
        dtype: Any = "bfloat16",
        causal: bool = True,
        sm_scale: float | None = None,
        policy: str = "auto",
        device: int | None = None,
    ) -> None:
        self.layer: Layer = make_layer(
            num_qo_heads, num_kv_heads, head_dim, page_size, kv_layout, dtype, causal, sm_scale
        )
        self.policy = parse_policy(policy)
        self._device = _checked_device(device)
        self._scheduler: Scheduler | None = None
        self._planned: _Planned | None = None
        self._workspaces: Workspaces | None = None

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The kernels that `run` launches for the planned batch, in order."""
        return self._require_plan().variants

    @property
    def current_plan(self) -> Plan:
        """The work list of the planned batch."""
        return self._require_plan().plan

    def plan(
        self,
        qo_indptr: Any,
        kv_lens: Any,
        *,
        block_table: Any = None,
        kv_indptr: Any = None,
        kv_indices: Any = None,
    ) -> None:
        """Prepare for a batch; requests may be in any order, prefill and decode mixed.

        Parameters
        ----------
        qo_indptr : int32 [requests + 1]
            Request i owns rows ``qo_indptr[i]`` to ``qo_indptr[i + 1]`` of q. Ints, NumPy, or a
            tensor of any framework; reading one on a GPU waits for it.
        kv_lens : int32 [requests]
            Keys of every request, its new tokens (already in the cache) included.
        block_table : int32 [requests, max_pages], optional
            Page numbers of every request. On a GPU it is read by the kernel at every run, so its
            values may change in place; in host memory it is copied now. Page numbers in host memory
            are checked against the cache by `run`. Those on a GPU cannot be checked without a copy:
            one that is not a page of the cache reads memory that is not the cache's.
        kv_indptr, kv_indices : int32 [requests + 1] and [at least kv_indptr[-1]], optional
            The page numbers as one list instead; kv_indices as block_table, kv_indptr as kv_lens.

        Raises
        ------
        ValueError, TypeError
            An argument is malformed, or lengths and page table do not fit each other.
        DeviceError
            There is no usable GPU.
        CompileError
            A kernel did not compile.
        """
        device = self._device_info()
        page_table = read_page_table(self.layer.page_size, block_table, kv_indptr, kv_indices)
        require_on_device(page_table, device.ordinal)
        batch = make_batch(
            host_array(qo_indptr, "qo_indptr"),
            host_array(kv_lens, "kv_lens"),
            page_table,
            self.layer.page_size,
        )
        if self._scheduler is None:
            self._scheduler = Scheduler(self.layer, device, self.policy)
        schedule = self._scheduler.schedule(batch)
        for variant in schedule.variants:
            load_kernel(variant, device.ordinal)  # compiles now rather than in the first run
        self._planned = _Planned(batch, page_table, schedule.plan, schedule.variants)

    def run(
        self,
        q: Any,
        k_cache: Any,
        v_cache: Any,
        *,
        out: Any = None,
        lse: Any = None,
        return_lse: bool = False,
        stream: Any = None,
    ) -> Any:
        """Launch attention of the planned batch; returns without waiting for the GPU.

        Parameters
        ----------
        q : [total_tokens, num_qo_heads, head_dim]
            Queries, any strides over tokens and heads.
        k_cache, v_cache : [B, L, Hkv, D] or [pages, page_size, Hkv, D]
            Caches (axes as `kv_layout` says), any strides but the last. What lies in slots that
            hold no key of the batch, NaN included, makes no difference.
        out : as q, optional
            Where the result goes; allocated in the framework of `q` if None.
        lse : float32 [total_tokens, num_qo_heads], optional
            Where the log-sum-exp goes.
        return_lse : bool
            Return ``(out, lse)``: natural log of the sum of exp of the scaled scores, -inf for a
            row that sees no key (whose output is 0).
        stream : int, CuPy or torch stream, or anything with ``__cuda_stream__``, optional
            The current stream of the framework of `q` if None.

        Returns
        -------
        out or (out, lse)
            In the framework of `q`.

        Raises
        ------
        ValueError, TypeError
            A tensor does not fit the plan, or a page number in host memory is not a page of the
            cache; nothing has been launched.
        RuntimeError
            `plan` has not been called.
        """
        planned = self._require_plan()
        device = self._device_info()
        handle = resolve_stream(stream, like=q)
        tensors = view_tensors(
            self.layer,
            planned.batch,
            handle,
            q,
            k_cache,
            v_cache,
            out=out,
            lse=lse,
            return_lse=return_lse,
        )
        require_kernel_can_read(tensors, device.ordinal)
        self._require_pages_exist(planned, tensors.k_cache.shape[0])
        self._launch(planned, tensors, device, handle)
        return tensors.results(return_lse=return_lse, stream=handle)

    def _launch(
        self, planned: _Planned, tensors: RunTensors, device: DeviceInfo, stream: int
    ) -> None:
        if not planned.variants:
            return
        if self._workspaces is None:
            self._workspaces = Workspaces(device.ordinal)
        table = planned.page_table
        workspace = self._workspaces.ready(
            stream, planned.plan, self.layer.head_dim, table.host_values if table else None
        )
        address = 0
        if table is not None:
            on_host = table.host_values is not None
            address = workspace.page_table.data.ptr if on_host else table.tensor.pointer
        for variant in planned.variants:
            launch(
                variant,
                device=device.ordinal,
                num_sms=device.num_sms,
                stream=stream,
                plan=planned.plan,
                page_table=address,
                tensors=tensors,
                workspace=workspace,
                sm_scale=self.layer.sm_scale,
            )

    def _require_pages_exist(self, planned: _Planned, num_pages: int) -> None:
        table = planned.page_table
        if table is not None and num_pages not in planned.checked_num_pages:
            require_pages_exist(table, planned.batch, num_pages)
            planned.checked_num_pages.add(num_pages)

    def _require_plan(self) -> _Planned:
        if self._planned is None:
            raise RuntimeError("no batch is planned: call plan() first")
        return self._planned

    def _device_info(self) -> DeviceInfo:
        if self._device is None:
            self._device = current_device().ordinal
        return device_info(self._device)


def _checked_device(device: Any) -> int | None:
    if device is None:
        return None
    if not isinstance(device, int) or isinstance(device, bool):
        raise TypeError(f"device={device!r}: expected a CUDA device number, or None")
    if device < 0:
        raise ValueError(f"device={device}: must be at least 0")
    return device
