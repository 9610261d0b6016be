// Eight neighbouring elements of any type as floats.
#pragma once
#include "ptx/mma.cuh"

constexpr int kVector = 8;

struct Float32 {};

__device__ __forceinline__ float2 unpacked(Bf16, u32 pair) {
  return make_float2(__int_as_float(pair << 16), __int_as_float(pair & 0xFFFF0000u));
}
__device__ __forceinline__ float2 unpacked(Half, u32 pair) {
  float2 floats;
  asm("{.reg .b16 low, high;\n"
      "mov.b32 {low, high}, %2;\n"
      "cvt.f32.f16 %0, low;\n"
      "cvt.f32.f16 %1, high;}"
      : "=f"(floats.x), "=f"(floats.y)
      : "r"(pair));
  return floats;
}

template <class Element>
constexpr bool kIsFloat32 = false;
template <>
constexpr bool kIsFloat32<Float32> = true;

// Reads the vector that begins at element `at`, a multiple of 16 bytes.
template <class Element>
__device__ __forceinline__ void load_vector(float (&to)[kVector], const void* from, i64 at) {
  if constexpr (kIsFloat32<Element>) {
    const float4* vectors = reinterpret_cast<const float4*>(static_cast<const float*>(from) + at);
    const float4 low = vectors[0], high = vectors[1];
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
  } else {
    const uint4 packed = *reinterpret_cast<const uint4*>(static_cast<const u16*>(from) + at);
    const u32 pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float2 floats = unpacked(Element{}, pairs[i]);
      to[2 * i] = floats.x, to[2 * i + 1] = floats.y;
    }
  }
}

// Writes one likewise, rounded to the nearest.
template <class Element>
__device__ __forceinline__ void store_vector(void* to, i64 at, const float (&from)[kVector]) {
  if constexpr (kIsFloat32<Element>) {
    float4* vectors = reinterpret_cast<float4*>(static_cast<float*>(to) + at);
    vectors[0] = make_float4(from[0], from[1], from[2], from[3]);
    vectors[1] = make_float4(from[4], from[5], from[6], from[7]);
  } else {
    *reinterpret_cast<uint4*>(static_cast<u16*>(to) + at) =
        make_uint4(Element::pack(from[0], from[1]), Element::pack(from[2], from[3]),
                   Element::pack(from[4], from[5]), Element::pack(from[6], from[7]));
  }
}
