// What every torch adapter shares: argument checks, dispatch on the window's dtype, and threads. The
// checks restate what the Python layer has already refused with a better message; they keep a direct call of
// torch.ops.mfac from reading outside a tensor.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <vector>

#include "isa/kernels.h"

namespace mfac {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_float(const Tensor& t) { return t.scalar_type() == ScalarType::Float; }
inline bool is_double(const Tensor& t) { return t.scalar_type() == ScalarType::Double; }

inline void check_rows(const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 2, op, ": Parameter `", name, "` should be a matrix. Found ", t.dim(), " dimensions.");
  STD_TORCH_CHECK(is_float(t) || is_double(t), op, ": Parameter `", name, "` should be float32 or float64.");
  STD_TORCH_CHECK(t.size(1) <= 1 || t.stride(1) == 1, op, ": Parameter `", name, "` should have contiguous rows.");
}

inline void check_dense_f64(const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(is_double(t), op, ": Parameter `", name, "` should be float64.");
  STD_TORCH_CHECK(t.is_contiguous(), op, ": Parameter `", name, "` should be contiguous.");
}

inline void check_size(const char* op, const char* name, int64_t found, int64_t expected) {
  STD_TORCH_CHECK(found == expected, op, ": Parameter `", name, "` should have size ", expected, ". Found ", found,
                  ".");
}

inline void check_shape(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
  STD_TORCH_CHECK(t.dim() == static_cast<int64_t>(shape.size()), op, ": Parameter `", name, "` should have ",
                  shape.size(), " dimensions. Found ", t.dim(), ".");
  int64_t dim = 0;
  for (const int64_t size : shape) check_size(op, name, t.size(dim++), size);
}

inline Tensor empty_f64(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes, ScalarType::Double);
}

// Calls f with a null pointer of the element type of `t`.
template <typename F>
void dispatch_float(const Tensor& t, const F& f) {
  if (is_float(t)) f(static_cast<float*>(nullptr));
  else f(static_cast<double*>(nullptr));
}

template <typename P>
using element_t = std::remove_pointer_t<P>;

// f(begin, end) on torch's intra-op threads over [0, count) tasks of about `work` elements each; one thread
// where a second would cost more to wake than it saves.
template <typename F>
void parallel_tasks(int64_t count, int64_t work, const F& f) {
  constexpr int64_t kWorkPerThread = 32768;
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, kWorkPerThread / std::max<int64_t>(1, work)), f);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace mfac
