// The part of DLPack's C interface (version 1) that reads a tensor in place. torch has a header of it that it keeps
// from extensions built on its stable ABI; the layouts are DLPack's own and do not change within a major version.
// https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <cstdint>

namespace fastrnn::dlpack {

constexpr uint32_t kMajorVersion = 1;
constexpr int32_t kCpu = 1;
constexpr uint8_t kFloat = 2, kBfloat = 4;
constexpr const char* kExchangeAttribute = "__dlpack_c_exchange_api__";
constexpr const char* kExchangeCapsule = "dlpack_exchange_api";

struct Device {
  int32_t type, id;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
  bool operator==(const DataType&) const = default;
};

struct Tensor {  // DLTensor
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};

struct Exchange {  // DLPackExchangeAPI
  struct {
    uint32_t major, minor;
  } version;
  void* previous;
  void* unused[3];                         // of tensors that own their memory
  int (*read)(void* object, Tensor* out);  // dltensor_from_py_object_no_sync: 0, or -1 with Python's error set
};

}  // namespace fastrnn::dlpack
