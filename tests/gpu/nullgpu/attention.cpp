// cuDNN's attention as packages call it, without cuDNN, which needs a GPU to say anything.
//
// Preloaded, it stands before torch's own; outputs have the shapes and strides that cuDNN gives.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

using Tensor = void*;
using Error = int32_t;

namespace {

template <class Function>
Function* torchs(const char* name) {
  static void* library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  void* found = dlsym(library ? library : RTLD_DEFAULT, name);
  if (!found) {
    fprintf(stderr, "[nullgpu] torch has no %s\n", name);
    abort();
  }
  return reinterpret_cast<Function*>(found);
}

const int64_t* sizes_of(Tensor tensor) {
  int64_t* sizes;
  torchs<Error(Tensor, int64_t**)>("aoti_torch_get_sizes")(tensor, &sizes);
  return sizes;
}

Error make(Tensor* out, int64_t rank, const int64_t* sizes, const int64_t* strides, const char* dtype) {
  if (!out) return 0;
  return torchs<Error(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, Tensor*)>(
      "aoti_torch_empty_strided")(rank, sizes, strides, torchs<int32_t()>(dtype)(),
                                  torchs<int32_t()>("aoti_torch_device_type_cuda")(), 0, out);
}

}  // namespace

extern "C" Error aoti_torch_cuda__scaled_dot_product_cudnn_attention(
    Tensor q, Tensor k, Tensor, Tensor*, int32_t, double, int32_t, int32_t, double*, Tensor* out, Tensor* logsumexp,
    Tensor* cum_q, Tensor* cum_k, int64_t* max_q, int64_t* max_k, Tensor* seed, Tensor* offset, Tensor* debug_mask) {
  const int64_t* s = sizes_of(q);  // [batch, heads, tokens, head_dim]
  const int64_t strides[4] = {s[1] * s[2] * s[3], s[3], s[1] * s[3], 1};
  const int64_t rows[4] = {s[0], s[1], s[2], 1}, row_strides[4] = {s[1] * s[2], s[2], 1, 1};
  if (max_q) *max_q = s[2];
  if (max_k) *max_k = sizes_of(k)[2];
  Error error = make(out, 4, s, strides, "aoti_torch_dtype_bfloat16");
  error |= make(logsumexp, 4, rows, row_strides, "aoti_torch_dtype_float32");
  for (Tensor* scalar : {cum_q, cum_k, seed, offset, debug_mask})
    error |= make(scalar, 0, s, strides, "aoti_torch_dtype_int64");
  return error;
}
