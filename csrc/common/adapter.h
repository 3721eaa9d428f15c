// What every torch adapter shares: argument checks, dispatch on the window's dtype, and threads.
// The checks restate what the Python layer has already refused with a better message; they keep a
// direct call of torch.ops.mfac from reading outside a tensor.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace mfac {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_float(const Tensor& t) { return t.scalar_type() == ScalarType::Float; }
inline bool is_double(const Tensor& t) { return t.scalar_type() == ScalarType::Double; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t scale_count(int64_t dim) { return ceil_div(dim, kScaleColumns); }

inline std::string list_of(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  std::string text = "[";
  for (const int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

// The end of an error that refuses a tensor: what was found.
inline std::string found(const Tensor& t) {
  return " Found " + std::string(torch::headeronly::toString(t.scalar_type())) + " of shape " + list_of(t.sizes()) +
         " and strides " + list_of(t.strides()) + ".";
}

inline void check_matrix(const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 2, op, ": Parameter `", name, "` should be a matrix.", found(t));
  STD_TORCH_CHECK(t.size(1) <= 1 || t.stride(1) == 1, op, ": Parameter `", name, "` should have contiguous rows.",
                  found(t));
}

inline void check_rows(const char* op, const char* name, const Tensor& t) {
  check_matrix(op, name, t);
  STD_TORCH_CHECK(is_float(t) || is_double(t), op, ": Parameter `", name, "` should be float32 or float64.", found(t));
}

inline bool is_window_type(const Tensor& t) {
  const ScalarType type = t.scalar_type();
  return is_float(t) || is_double(t) || type == ScalarType::BFloat16 || type == ScalarType::Half ||
         type == ScalarType::Char;
}

// A window [m, d] of any of its formats, with scales [m, ceil(d / kScaleColumns)] float32 if and
// only if it is int8.
inline void check_window(const char* op, const Tensor& window, const std::optional<Tensor>& scales) {
  check_matrix(op, "window", window);
  STD_TORCH_CHECK(is_window_type(window), op,
                  ": Parameter `window` should be float32, float64, bfloat16, float16 or int8.", found(window));
  const bool scaled = window.scalar_type() == ScalarType::Char;
  STD_TORCH_CHECK(scaled == scales.has_value(), op,
                  ": Parameter `scales` should be given for an int8 window, and only for one. Found ",
                  scales ? "scales" : "none", " for a window of ", torch::headeronly::toString(window.scalar_type()),
                  ".");
  if (!scaled) return;
  STD_TORCH_CHECK(scales->dim() == 2 && is_float(*scales) && scales->is_contiguous(), op,
                  ": Parameter `scales` should be a contiguous float32 matrix.", found(*scales));
  STD_TORCH_CHECK(scales->size(0) == window.size(0) && scales->size(1) == scale_count(window.size(1)), op,
                  ": Parameter `scales` should have a row for every row and a column for every ", kScaleColumns,
                  " columns of `window` [", window.size(0), ", ", window.size(1), "].", found(*scales));
}

inline void check_dense_f64(const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(is_double(t), op, ": Parameter `", name, "` should be float64.", found(t));
  STD_TORCH_CHECK(t.is_contiguous(), op, ": Parameter `", name, "` should be contiguous.", found(t));
}

inline void check_size(const char* op, const char* name, int64_t found, int64_t expected) {
  STD_TORCH_CHECK(found == expected, op, ": Parameter `", name, "` should have size ", expected, ". Found ", found,
                  ".");
}

inline void check_shape(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
  STD_TORCH_CHECK(t.dim() == static_cast<int64_t>(shape.size()), op, ": Parameter `", name, "` should have ",
                  shape.size(), " dimensions.", found(t));
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

// The same with the 16-bit formats of a window.
template <typename F>
void dispatch_float_window(const Tensor& t, const F& f) {
  if (t.scalar_type() == ScalarType::BFloat16) f(static_cast<bf16*>(nullptr));
  else if (t.scalar_type() == ScalarType::Half) f(static_cast<f16*>(nullptr));
  else dispatch_float(t, f);
}

// The same with int8.
template <typename F>
void dispatch_window(const Tensor& t, const F& f) {
  if (t.scalar_type() == ScalarType::Char) f(static_cast<int8_t*>(nullptr));
  else dispatch_float_window(t, f);
}

// Elements of a tensor as the kernels' own type.
template <typename T>
const T* elements(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <typename T>
T* mutable_elements(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
inline const float* elements_of(const std::optional<Tensor>& t) { return t ? elements<float>(*t) : nullptr; }

template <typename P>
using element_t = std::remove_pointer_t<P>;

// Where vectors begin at cache lines: a load or store of 64 bytes that crosses a line takes two.
template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  LineAllocator() = default;
  template <typename S>
  LineAllocator(const LineAllocator<S>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, kLine); }
  friend bool operator==(const LineAllocator&, const LineAllocator&) { return true; }
};
template <typename T>
using Buffer = std::vector<T, LineAllocator<T>>;

// f(begin, end) on torch's intra-op threads over [0, count) tasks of about `work` elements each;
// one thread where a second would cost more to wake than it saves.
template <typename F>
void parallel_tasks(int64_t count, int64_t work, const F& f) {
  constexpr int64_t kWorkPerThread = 32768;
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, kWorkPerThread / std::max<int64_t>(1, work)), f);
}

}  // namespace mfac
