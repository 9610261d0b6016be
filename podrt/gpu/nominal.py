"""GPUs to plan for where there is none, by their data sheets."""

from __future__ import annotations

from podrt.gpu.arch import get_arch
from podrt.gpu.device import DeviceInfo

H100 = DeviceInfo(
    ordinal=0,
    name="NVIDIA H100 80GB HBM3",
    arch=get_arch("sm_90a"),
    num_sms=132,
    total_memory_bytes=80 << 30,
    l2_bytes=50 << 20,
    memory_gbs=3352.0,
)

H200 = DeviceInfo(
    ordinal=0,
    name="NVIDIA H200",
    arch=get_arch("sm_90a"),
    num_sms=132,
    total_memory_bytes=141 << 30,
    l2_bytes=50 << 20,
    memory_gbs=4917.0,  # by its clock, 3201 MHz, and 6144 bits
)

#: By the names that the command line knows them by.
GPUS = {"h100": H100, "h200": H200}
