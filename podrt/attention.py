"""The front door: `HybridAttention`."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from podrt.gpu.device import checked_ordinal, current_device, device_info, part_of
from podrt.kernels.families import Variant
from podrt.plan import Plan, most_decode_tokens
from podrt.policy.explain import Explanation
from podrt.policy.policies import Policy, policy_of
from podrt.policy.schedule import Scheduler
from podrt.runtime.checks import checked_tensors
from podrt.runtime.driver import Driver
from podrt.runtime.plan_stream import stream_of_plan
from podrt.runtime.planned import Planned, Prepared
from podrt.runtime.reservation import Limits, Reservation, room_for
from podrt.runtime.session import Session
from podrt.runtime.write_and_run import WriteAndRun, write_and_run_like
from podrt.spec.attention import AttentionSpec, make_spec, positive_int, whole_number
from podrt.spec.batch import HybridBatch
from podrt.spec.shared_prefix import SharedPrefix
from podrt.tensors.device_lengths import view_device_lengths
from podrt.tensors.frameworks import Framework
from podrt.tensors.host import host_array
from podrt.tensors.page_table import PageTable, make_batch, read_page_table, require_on_device
from podrt.tensors.shared_prefixes import SharedPrefixes, with_prefixes
from podrt.tensors.streams import resolve_stream
from podrt.tensors.tree_mask import read_tree_mask
from podrt.tensors.view import view

_NO_PAGES: Mapping[int, int] = {}


class HybridAttention:
    """Attention of batches that mix prefill chunks and decodes, in one launch each.

    Call `plan` once for a batch (host work: it reads the lengths), then `run` as often as there are
    layers. One object serves one layer shape on one device, for any number of threads and streams,
    and may be captured into CUDA graphs, as whose memory it must live: ``docs/contract.md``.

    Parameters
    ----------
    num_qo_heads : int
        Query heads, a multiple of the KV heads.
    num_kv_heads : int
        KV heads.
    head_dim : int
        Elements of a head of q and the keys, a multiple of 8 from 32 to 256. Those of the Hopper
        family: 64, 80, 96, 112, 128, 192, 256.
    v_head_dim : int, optional
        Elements of a head of the values and of the output, likewise, but at most `head_dim`: 128
        beside 192 for multi-head latent attention (MLA) that is not absorbed. As `head_dim` if
        None.
    page_size : int, optional
        Tokens of a page of the KV cache; None (the default) is a contiguous cache.
    kv_layout : {"NHD", "HND"}
        Order of the caches' axes: ``[pages, page_size, Hkv, D]`` or ``[pages, Hkv, page_size, D]``;
        likewise with ``[requests, length]`` for a contiguous cache.
    dtype : {"bfloat16", "float16"}
        Element type of q, the caches and the output.
    causal : bool
        Token t of a request stands at key ``kv_len - q_len + t`` and sees none behind that. Without
        it, the last key that it sees is the last of the request.
    sm_scale : float, optional
        Factor on the scores before the softmax; ``head_dim ** -0.5`` if None.
    window_left : int, optional
        Keys before its own that a token sees (a sliding window of ``window_left + 1`` keys); 0
        leaves its own alone. Pages before all windows are not read. All keys if None.
    logits_soft_cap : float, optional
        Scaled scores s become ``cap * tanh(s / cap)`` before they are masked; none do if None.
    tree_mask : bool
        Plans take a tree mask, for speculative decoding. Requests of at most 64 tokens are then
        decodes, in as many tiles as they need; longer ones are causal prefills.
    policy : str or Policy
        Which kernels run and how they share the SMs: a name of `podrt.policy.policies`, or a
        `podrt.Policy` with what is to be fixed by hand.
        ``"auto"``: the Hopper family where it can serve the layer, else the portable one, and one
        launch after the other where decode is too little to be worth hiding behind a long prefill.
    deterministic : bool
        Sets `Policy.deterministic`: the bits of a request's results do not depend on what else is
        in the batch. ``docs/contract.md`` says what holds and what it costs.
    device : int, optional
        CUDA device number; the current device at the first `plan` if None.
    num_sms : int, optional
        SMs that launches count on, where runs are on streams of a green context that has fewer than
        the GPU; all of the GPU's if None.

    Raises
    ------
    UnsupportedConfigError
        A choice that podrt does not offer; the message says what it offers.
    ValueError, TypeError
        An argument that makes no sense; the first `plan` or `reserve` says so of more `num_sms`
        than the GPU has.
    """

    def __init__(
        self,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        v_head_dim: int | None = None,
        page_size: int | None = None,
        kv_layout: str = "NHD",
        dtype: Any = "bfloat16",
        causal: bool = True,
        sm_scale: float | None = None,
        window_left: int | None = None,
        logits_soft_cap: float | None = None,
        tree_mask: bool = False,
        policy: str | Policy = "auto",
        deterministic: bool = False,
        device: int | None = None,
        num_sms: int | None = None,
    ) -> None:
        self.layer: AttentionSpec = make_spec(
            num_qo_heads,
            num_kv_heads,
            head_dim,
            page_size,
            kv_layout,
            dtype,
            causal,
            sm_scale,
            window_left,
            logits_soft_cap,
            tree_mask,
            v_head_dim,
        )
        self.policy = policy_of(policy, deterministic)
        self._device = None if device is None else checked_ordinal(device)
        self._num_sms = None if num_sms is None else positive_int("num_sms", num_sms)
        self._lock = threading.RLock()
        self._session: Session | None = None
        self._framework: Framework | None = None  # of the last tensors, for the stream of a plan
        self._table: PageTable | None = None  # the last one

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The kernels that `run` launches for the planned batch, in order.

        Of those for heads in pairs (`Policy.head_pairs`) the ones for heads one by one run in their
        place over caches whose heads do not lie side by side.
        """
        return self._require_plan().variants

    @property
    def reserved_variants(self) -> tuple[Variant, ...]:
        """The kernels that graphs hold: for any batch, then for decodes alone; after `reserve`."""
        reserved = self._require_reservation("reserved_variants")
        return tuple(variant for variant, _ in (*reserved.captured, *reserved.captured_decode))

    @property
    def current_plan(self) -> Plan:
        """The work list of the planned batch."""
        return self._require_plan().plan

    @property
    def is_reserved(self) -> bool:
        """Whether `reserve` has been called: graphs captured now compute the batch planned last."""
        session = self._session
        return session is not None and session.reservation is not None

    def explain(self) -> Explanation:
        """Say how the planned batch is run, why, and what that and else is predicted to take.

        `str` of it is a table. Rules choose, not predictions. RuntimeError before `plan`.
        """
        with self._lock:
            return self._session_ready().explain(self._require_plan())

    def plan(
        self,
        qo_indptr: Any,
        kv_lens: Any,
        *,
        block_table: Any = None,
        kv_indptr: Any = None,
        kv_indices: Any = None,
        device_kv_lens: Any = None,
        tree_mask: Any = None,
        shared_prefixes: SharedPrefixes = None,
        stream: Any = None,
    ) -> None:
        """Prepare for a batch; requests may be in any order, prefill and decode mixed.

        Work lists are copied to the GPU in the order of `stream`, without waiting for it: runs and
        graph replays that were enqueued there before still compute the batch before. All arguments
        but those on the GPU have been read when this returns.

        Parameters
        ----------
        qo_indptr : int32 [requests + 1]
            Request i owns rows ``qo_indptr[i]`` to ``qo_indptr[i + 1]`` of q. Ints, NumPy, or a
            tensor of any framework; reading one on a GPU waits for it.
        kv_lens : int32 [requests]
            Keys of every request, its new tokens (already in the cache) included.
        block_table : int32 [requests, max_pages], optional
            Page numbers of every request. In host memory they are copied now, and checked against
            the cache by `run`. On a GPU they are read at every run, so they may change in place,
            and not checked: for one that is not a page of the cache, negative ones included, the
            Hopper family takes keys and values of zero, the portable one those of the last page.
        kv_indptr : int32 [requests + 1], optional
            The page numbers as one list in place of `block_table`: those of request i are entries
            ``kv_indptr[i]`` to ``kv_indptr[i + 1]`` of `kv_indices`. Read as `kv_lens` is.
        kv_indices : int32 [at least kv_indptr[-1]], optional
            That list. Read as `block_table` is.
        device_kv_lens : int32 [requests], optional
            Exact lengths on the GPU, read at every run, where `kv_lens` are upper bounds: a request
            has ``min(kv_lens[i], device_kv_lens[i])`` keys, and windows end at the last of those.
            For speculative decoding, where the host does not know yet how many tokens were
            accepted.
        tree_mask : uint64 or int64 [at least total_tokens], optional
            For layers made with ``tree_mask=True``: bit j of the word of a token is whether it sees
            the j-th new token of its request, whatever the window; older keys it sees as without a
            tree. A word of 0 is no tree: the token sees what it does in a layer without. Words of
            requests of more than 64 tokens must be 0. In host memory they are copied now; on a GPU
            they are read at every run, so they may change in place, and words of longer requests
            are not looked at. All words are 0 if None.
        shared_prefixes : iterable of (begin, end, num_keys) or "find", optional
            Requests ``begin`` to ``end - 1``, one after another, have their first `num_keys` keys,
            whole pages without new tokens, in the same pages: those of the first of them are read,
            once for the tokens of all, in the same launch as everything else; a second, short one
            merges both parts of those rows. In the order of the batch. ``"find"`` compares the
            page numbers of neighbours, in host memory, and takes what saves more than the second
            launch costs. Not for layers with a window or trees, nor beside `device_kv_lens`.
        stream : int, CuPy or torch stream, or anything with __cuda_stream__, optional
            The stream of the runs, or of the replays, to come. If None, the current stream of the
            framework of the page table, `device_kv_lens` or `tree_mask`, where they lie on the GPU,
            else of the last run's tensors, else the stream of `reserve`.

        Raises
        ------
        ValueError, TypeError
            An argument is malformed, lengths and page table do not fit each other, or the batch is
            beyond what was reserved. The batch planned before stays in place.
        RuntimeError
            `stream` is being captured into a graph.
        DeviceError, CompileError
            There is no usable GPU, or a kernel did not compile.
        """
        with self._lock:
            session = self._session_ready()
            lengths, pages = (qo_indptr, kv_lens), (block_table, kv_indptr, kv_indices)
            batch, table = self._read_batch(session, lengths, pages)
            more = device_kv_lens, tree_mask, shared_prefixes
            with session.driver.current():
                session.adopt(*self._prepare(session, batch, table, *more, stream))

    def grow(
        self, num_keys: int = 1, *, new_pages: Mapping[int, int] | None = None, stream: Any = None
    ) -> bool:
        """Have every request of the planned batch `num_keys` keys more, if that needs no new plan.

        From one step of a server to the next decodes mostly grow alike. What `plan` would then make
        of the whole batch, a short launch makes on the GPU of the plan that lies there, the same to
        the bit, in a fraction of its time: for 15 of 16 steps of decodes alone, without windows,
        trees or shared prefixes, over pages, once the same query lengths have been planned twice.

        Parameters
        ----------
        num_keys : int
            At least 1. `device_kv_lens`, where the plan has them, stay as they are: exact lengths,
            beside which those of the plan are upper bounds.
        new_pages : {entry: page}, optional
            Of a page table that `plan` copied from host memory, entries of the flat page numbers
            that are others now, 128 at most. A block table counts as many columns as it has, but
            after `reserve` no more than `max_kv_len` needs. A table on the GPU may change in place
            without.
        stream : optional
            As `plan`: the growth takes place in its order.

        Returns
        -------
        bool
            Whether it was done. If not, nothing has changed, and `plan` has to be called, which
            says so if something is wrong, a page that is missing for example. It is never done for
            deterministic or autotuned layers that were measured; without `reserve` unless the last
            run was on that stream, of PyTorch or CuPy and without an LSE; nor once runs have
            checked a host table of which some entry is no page of the cache.

        Raises
        ------
        RuntimeError
            `stream` is being captured into a graph.
        ValueError, TypeError
            `num_keys` is less than 1, or no whole number.
        """
        with self._lock:
            if type(num_keys) is not int or num_keys < 1:
                num_keys = whole_number("num_keys", num_keys, 1)
            session = self._session
            if session is None:
                return False
            with session.driver.current():
                tensors = session.tensors_of_plan
                on = stream_of_plan(session, stream, self._framework, *tensors)
                return on is not None and session.grow(num_keys, new_pages or _NO_PAGES, on)

    @property
    def shared_prefixes(self) -> tuple[SharedPrefix, ...]:
        """The prefixes of the planned batch, as `plan` takes them; none before it."""
        with self._lock:
            planned = self._session.planned if self._session else None
            return planned.batch.prefixes if planned else ()

    def read_batch(
        self,
        qo_indptr: Any,
        kv_lens: Any,
        *,
        block_table: Any = None,
        kv_indptr: Any = None,
        kv_indices: Any = None,
    ) -> tuple[HybridBatch, PageTable | None]:
        """Check the arguments of `plan` and return what they say; errors as there.

        For objects made of several of these, which plan parts of a batch.
        """
        with self._lock:
            lengths, pages = (qo_indptr, kv_lens), (block_table, kv_indptr, kv_indices)
            return self._read_batch(self._session_ready(), lengths, pages)

    def prepare(
        self,
        batch: HybridBatch,
        table: PageTable | None,
        *,
        device_kv_lens: Any = None,
        tree_mask: Any = None,
        shared_prefixes: SharedPrefixes = None,
        stream: Any = None,
    ) -> Prepared:
        """Plan a batch that `read_batch` gave, or a part of it over the same page table.

        The batch planned before stays in place until `adopt`. Errors as `plan`.
        """
        with self._lock:
            session = self._session_ready()
            more = device_kv_lens, tree_mask, shared_prefixes
            with session.driver.current():
                return self._prepare(session, batch, table, *more, stream)

    def adopt(self, prepared: Prepared) -> None:
        """Make a batch of `prepare` the one that runs compute."""
        with self._lock:
            session = self._session_ready()
            with session.driver.current():
                session.adopt(*prepared)

    def run(
        self,
        q: Any,
        k_cache: Any,
        v_cache: Any,
        *,
        out: Any = None,
        sinks: Any = None,
        lse: Any = None,
        return_lse: bool = False,
        decodes_only: bool = False,
        stream: Any = None,
    ) -> Any:
        """Launch attention of the planned batch; returns without waiting for the GPU.

        Parameters
        ----------
        q : [total_tokens, num_qo_heads, head_dim]
            Queries, any strides over tokens and heads. After `reserve` there may be more rows than
            the batch has tokens; nothing is read or written for those.
        k_cache, v_cache : [B, L, Hkv, D] or [pages, page_size, Hkv, D]
            Caches (axes as `kv_layout` says), any strides but the last; the D of `v_cache` is
            `v_head_dim`. What lies in slots that hold no key that a token sees, NaN included, makes
            no difference.
        out : [total_tokens, num_qo_heads, v_head_dim], optional
            Where the result goes, apart from all inputs; allocated in the framework of `q` if None.
        sinks : float32 [num_qo_heads], optional
            Logits of one more key for each query head, whose value is 0 and which every token sees:
            neither scaled nor capped, a term ``exp(sink)`` in the sum that divides the output. Any
            stride; read on the GPU at every run and replay.
        lse : float32 [total_tokens, num_qo_heads], optional
            Where the log-sum-exp goes.
        return_lse : bool
            Return ``(out, lse)``: natural log of the sum of exp of the scores as the softmax has
            them, -inf for a row that sees no key (whose output is 0). Sinks are left out, so that
            results over parts of the keys can be merged.
        decodes_only : bool
            After `reserve`, under capture: the graph will only be replayed for batches of decodes
            (`are_decodes`), for which there is a faster kernel; it would leave out prefills.
        stream : int, CuPy or torch stream, or anything with __cuda_stream__, optional
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
            `plan` has not been called, or an output would have to be allocated while the stream is
            being captured.
        """
        with self._lock:
            session = self._session
            if session is not None and lse is None and not return_lse:
                done = session.repeat(q, k_cache, v_cache, out, sinks, stream)
                if done is not None:
                    return done
            planned, session = self._require_plan(), self._session_ready()
            with session.driver.current():
                handle = resolve_stream(stream, like=q)
                tensors = checked_tensors(
                    session, planned, handle, (q, k_cache, v_cache), sinks, out, lse, return_lse
                )
                self._framework = tensors.q.framework
                session.run(planned, tensors, handle, decodes_only=decodes_only)
                return tensors.results(return_lse=return_lse, stream=handle)

    def write_and_run_like(
        self, q: Any, k: Any, v: Any, k_cache: Any, v_cache: Any, slot_mapping: Any, out: Any = None
    ) -> WriteAndRun | None:
        """Return what repeats the last write and run over tensors like these; None if nothing can.

        For engines, which in every layer call `podrt.write_cache` and then `run`: as one call it
        takes half the time. To be called after both. What it returns does nothing and returns None
        where anything is unlike: then call both again, and this. It goes to the current stream,
        which must be there as long as the plan.

        Parameters
        ----------
        q, k, v : [tokens, heads, head_dim] or [1, heads, tokens, head_dim]
            PyTorch tensors. Of the latter both calls had views of the former shape, and results are
            ``[1, tokens, heads, v_head_dim]``.
        k_cache, v_cache, slot_mapping
            As in both calls, with ``kv_layout="NHD"``.
        out : [tokens, heads, v_head_dim], optional
            Where the result went, if it was not allocated.
        """
        with self._lock:
            session = self._session_ready()
            with session.driver.current():
                tensors = q, k, v, k_cache, v_cache, slot_mapping, out
                return write_and_run_like(self._lock, session, *tensors)

    def workspace_bytes(
        self,
        max_requests: int,
        max_tokens: int,
        max_kv_len: int,
        max_decode_tokens: int = 1,
        *,
        max_prefixes: int = 0,
    ) -> int:
        """Return the bytes that `reserve`, whose limits these are, takes as `workspace`.

        Allocates and compiles nothing.
        """
        limits = Limits(max_requests, max_tokens, max_kv_len, max_decode_tokens, max_prefixes)
        with self._lock:
            return room_for(limits, self._scheduler()).scratch_bytes

    def reserve(
        self,
        max_requests: int,
        max_tokens: int,
        max_kv_len: int,
        max_decode_tokens: int = 1,
        *,
        max_prefixes: int = 0,
        workspace: Any = None,
        stream: Any = None,
    ) -> None:
        """Fix buffers and kernels, so that a graph captured once computes every batch to come.

        After this, `run` may be captured, once for each number of rows of q: it records the same
        launch whatever is planned, an empty batch included. Every later `plan` within the limits
        makes replays compute the new batch; rows of `out` beyond it stay untouched. Ordinary runs
        stay possible in between. Plans, runs and replays of one object must follow one another in
        stream order. Graphs of an earlier `reserve` keep their memory, and the batch of then.

        Parameters
        ----------
        max_requests, max_tokens, max_kv_len : int
            Most requests, query tokens of all together, and keys of one.
        max_decode_tokens : int
            Query tokens of a request that shall count as a decode, as far as the largest decode
            tile holds them (`are_decodes`): 1, or more for speculative decoding. Where the policy
            fixes `decode_rows`, no more than those hold.
        max_prefixes : int
            Most prefixes that decodes of a batch share (`plan`); if not 0, graphs hold a second,
            short launch, also where nothing is shared.
        workspace : uint8 [at least workspace_bytes(...)], optional
            Memory on the GPU for counters and partial results, allocated if None; kept alive by
            this object, and to be written by nobody else. Objects whose launches follow one another
            on one stream may share it, whatever their limits: the same tensor for all of them.
        stream : int, CuPy or torch stream, or anything with __cuda_stream__, optional
            The stream of the replays, on which buffers are made ready. If None, the current stream
            of the framework of `workspace`, else of the last run's tensors.

        Raises
        ------
        ValueError, TypeError
            A limit or `workspace` makes no sense; after this and any other error the object is as
            it was.
        RuntimeError
            `stream` is being captured.
        DeviceError, CompileError
            There is no usable GPU, or a kernel did not compile.
        """
        limits = Limits(max_requests, max_tokens, max_kv_len, max_decode_tokens, max_prefixes)
        with self._lock:
            session = self._session_ready()
            given = None if workspace is None else view(workspace, "workspace")
            with session.driver.current():
                on = stream_of_plan(session, stream, self._framework, given) or 0
                session.reserve(limits, given, on)

    def are_decodes(self, q_len: int) -> bool:
        """Return whether requests of so many query tokens count as decodes; after `reserve`."""
        reserved = self._require_reservation("are_decodes")
        layer = self.layer
        return q_len <= most_decode_tokens(layer.group, reserved.decode_rows, layer.mask)

    def release_graphs(self) -> None:
        """Give back what graphs captured without, or before the last, `reserve` read.

        To be called once they are gone and none of their replays is under way.
        """
        with self._lock:
            if self._session is not None:
                self._session.workspaces.release_captured()

    def _read_batch(
        self, session: Session, lengths: tuple[Any, Any], pages: tuple[Any, Any, Any]
    ) -> tuple[HybridBatch, PageTable | None]:
        """Do what `read_batch` says, under the lock."""
        table = self._page_table(session, *pages)
        require_on_device(table, session.driver.ordinal)
        qo_indptr, kv_lens = lengths
        on_host = host_array(qo_indptr, "qo_indptr"), host_array(kv_lens, "kv_lens")
        return make_batch(*on_host, table, self.layer.page_size), table

    def _sharing(
        self,
        session: Session,
        batch: HybridBatch,
        table: PageTable | None,
        asked: str | Iterable[Sequence[int]],
    ) -> HybridBatch:
        """Return a batch with the prefixes that its requests share."""
        limits = session.reservation.limits if session.reservation else None
        return with_prefixes(
            batch,
            table,
            asked,
            self.layer,
            deterministic=self.policy.deterministic,
            most_tokens=limits.max_decode_tokens if limits else None,
            most_prefixes=limits.max_prefixes if limits else None,
        )

    def _prepare(
        self,
        session: Session,
        batch: HybridBatch,
        table: PageTable | None,
        device_kv_lens: Any,
        tree_mask: Any,
        shared_prefixes: SharedPrefixes,
        stream: Any,
    ) -> Prepared:
        """Do what `prepare` says, under the lock, with the GPU current."""
        if shared_prefixes is not None:
            batch = self._sharing(session, batch, table, shared_prefixes)
        if device_kv_lens is not None and batch.prefixes:
            raise ValueError(
                "shared_prefixes: requests with device_kv_lens have keys that are known on the GPU "
                "alone; leave one of them out"
            )
        device = session.driver.ordinal
        lengths = view_device_lengths(device_kv_lens, batch.num_requests, device)
        tree = read_tree_mask(tree_mask, batch, self.layer.mask, device)
        tensors = table.tensor if table else None, lengths, tree.tensor if tree else None
        on = stream_of_plan(session, stream, self._framework, *tensors)
        return Prepared(session.plan(batch, table, lengths, tree), on)

    def _page_table(
        self, session: Session, block_table: Any, kv_indptr: Any, kv_indices: Any
    ) -> PageTable | None:
        """Read the page table, unless it is like the last one: a tensor on the GPU, used again."""
        page_size, reserved = self.layer.page_size, session.reservation
        max_pages = reserved.limits.max_pages(page_size) if reserved else None
        self._table = read_page_table(
            page_size, block_table, kv_indptr, kv_indices, max_pages=max_pages, last=self._table
        )
        return self._table

    def _require_plan(self) -> Planned:
        with self._lock:
            planned = self._session.planned if self._session else None
        if planned is None:
            raise RuntimeError("no batch is planned: call plan() first")
        return planned

    def _require_reservation(self, name: str) -> Reservation:
        reserved = self._session.reservation if self._session else None
        if reserved is None:
            raise RuntimeError(f"{name}: depends on what is reserved; call reserve() first")
        return reserved

    def _session_ready(self) -> Session:
        if self._session is None:
            scheduler = self._scheduler()
            self._session = Session(Driver(scheduler.gpu.ordinal), scheduler)
        return self._session

    def _scheduler(self) -> Scheduler:
        if self._session is not None:
            return self._session.scheduler
        if self._device is None:
            self._device = current_device().ordinal
        gpu = device_info(self._device)
        if self._num_sms is not None:
            gpu = part_of(gpu, self._num_sms)
        return Scheduler(self.layer, gpu, self.policy)
