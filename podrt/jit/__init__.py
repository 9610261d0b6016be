"""Render, compile, cache, load: text and options in, function out. Knows nothing of attention."""

from podrt.jit.artifact import Build, Resources
from podrt.jit.build import BuildStats, build, build_many, reset, stats
from podrt.jit.cache import DiskCache, Entry, open_cache
from podrt.jit.compiler import compile_ptx, compile_source
from podrt.jit.disassembler import disassemble, find_nvdisasm
from podrt.jit.key import cache_key
from podrt.jit.load import KernelAttributes, LoadedKernel, load
from podrt.jit.nvrtc import nvrtc_version
from podrt.jit.render import header_digest, render, templates_dir
from podrt.jit.source import KernelSource

__all__ = [
    "Build",
    "BuildStats",
    "DiskCache",
    "Entry",
    "KernelAttributes",
    "KernelSource",
    "LoadedKernel",
    "Resources",
    "build",
    "build_many",
    "cache_key",
    "compile_ptx",
    "compile_source",
    "disassemble",
    "find_nvdisasm",
    "header_digest",
    "load",
    "nvrtc_version",
    "open_cache",
    "render",
    "reset",
    "stats",
    "templates_dir",
]
