#include "cpu/rnn.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif
#define FASTRNN_NS avx512
#define FASTRNN_VECTOR_BYTES 64
#include "cpu/variant.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace fastrnn::cpu {
namespace {
bool supported() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
}  // namespace
const Kernels<float> avx512_f32 = avx512::kernels_f32;
const Kernels<double> avx512_f64 = avx512::kernels_f64;
const Isa isa_avx512 = {"avx512", supported, &avx512_f32, &avx512_f64, nullptr};
}  // namespace fastrnn::cpu
#else
namespace fastrnn::cpu {
const Isa isa_avx512 = {"avx512", [] { return false; }, nullptr, nullptr, nullptr};
}  // namespace fastrnn::cpu
#endif
