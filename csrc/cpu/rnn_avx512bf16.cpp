#include "cpu/rnn.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")
#endif
#define FASTRNN_NS avx512bf16
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_BF16
#include "cpu/variant.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace fastrnn::cpu {
namespace {
bool supported() { return isa_avx512.supported() && __builtin_cpu_supports("avx512bf16"); }
}  // namespace
const Isa isa_avx512bf16 = {"avx512bf16", supported, &avx512_f32, &avx512_f64, &avx512bf16::kernels_f32};
}  // namespace fastrnn::cpu
#else
namespace fastrnn::cpu {
const Isa isa_avx512bf16 = {"avx512bf16", [] { return false; }, nullptr, nullptr, nullptr};
}  // namespace fastrnn::cpu
#endif
