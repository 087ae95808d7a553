// Everything of an instruction set's variant, in order. The including file defines FASTRNN_NS and FASTRNN_VECTOR_BYTES
// and has opened the target region; standard headers come before it, so that none of their code is compiled for that
// target.
namespace fastrnn::cpu {
namespace FASTRNN_NS {
namespace {
#include "cpu/vec-inl.h"
//
#include "cpu/math-inl.h"
//
#include "cpu/half-inl.h"
//
#include "cpu/tiles-inl.h"
//
#include "cpu/product-inl.h"
#ifdef FASTRNN_BF16
#include "cpu/bf16-inl.h"
#endif
#ifdef FASTRNN_AMX
#include "cpu/amx-inl.h"
#elif defined(FASTRNN_BF16)
#include "cpu/dot-inl.h"
#endif
//
#include "cpu/cells-inl.h"
//
#include "cpu/share-inl.h"
//
#include "cpu/forward-inl.h"
//
#include "cpu/backward-inl.h"
//
#include "cpu/sums-inl.h"
//
#include "cpu/kernels-inl.h"
}  // namespace
}  // namespace FASTRNN_NS
}  // namespace fastrnn::cpu
