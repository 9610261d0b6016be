"""Render, compile, cache, load: text and options in, function out. Knows nothing of attention."""

from podrt.jit.artifact import Build, Resources
from podrt.jit.build import BuildStats, build, build_many, stats
from podrt.jit.cache import DiskCache, Entry, open_cache
from podrt.jit.compiler import compile_ptx, compile_source
from podrt.jit.disassembler import disassemble, find_nvdisasm
from podrt.jit.key import CODE_OPTIONS, Recipe, cache_key, recipe_of
from podrt.jit.load import KernelAttributes, LoadedKernel, load
from podrt.jit.memory import on_reset, reset
from podrt.jit.nvrtc import nvrtc_release, nvrtc_version
from podrt.jit.phases import compile_phases
from podrt.jit.render import collect_headers, render, templates_dir
from podrt.jit.source import KernelSource

__all__ = [
    "CODE_OPTIONS",
    "Build",
    "BuildStats",
    "DiskCache",
    "Entry",
    "KernelAttributes",
    "KernelSource",
    "LoadedKernel",
    "Recipe",
    "Resources",
    "build",
    "build_many",
    "cache_key",
    "collect_headers",
    "compile_phases",
    "compile_ptx",
    "compile_source",
    "disassemble",
    "find_nvdisasm",
    "load",
    "nvrtc_release",
    "nvrtc_version",
    "on_reset",
    "open_cache",
    "recipe_of",
    "render",
    "reset",
    "stats",
    "templates_dir",
]
