// What the ops of sparse rows ask of their arguments, on every device. No check reads the contents
// of a tensor.
#pragma once

#include "common/adapter.h"
#include "window/topk/topk_layout.h"
#include "window/window_combine/descent_checks.h"

namespace mfac {

inline TopKLayout check_entries(const char* op, const Tensor& values, const Tensor& indices, int64_t dim,
                                int64_t block_size) {
  const auto check_entry_of = [&](const char* name, const Tensor& t) {
    STD_TORCH_CHECK(t.dim() == 3 && t.is_contiguous(), op, ": Parameter `", name,
                    "` should be contiguous and have shape [m, blocks, kept].", found(t));
  };
  check_entry_of("values", values);
  check_entry_of("indices", indices);
  STD_TORCH_CHECK(is_window_type(values) && values.scalar_type() != ScalarType::Char, op,
                  ": Parameter `values` should be float32, float64, bfloat16 or float16.", found(values));
  STD_TORCH_CHECK(indices.scalar_type() == ScalarType::UInt16, op, ": Parameter `indices` should be uint16.",
                  found(indices));
  STD_TORCH_CHECK(block_size >= 1 && block_size <= 65536, op,
                  ": Parameter `block_size` should be in [1, 65536]. Found ", block_size, ".");
  check_shape(op, "indices", indices, {values.size(0), values.size(1), values.size(2)});
  check_size(op, "values", values.size(1), ceil_div(dim, block_size));
  const int64_t kept = values.size(2);
  STD_TORCH_CHECK(kept >= 1 && kept <= block_size, op, ": Parameter `values` should hold 1 to block_size=", block_size,
                  " entries of a block. Found ", kept, ".");
  return {values.size(0), values.size(1), kept, dim, block_size};
}

inline void check_boundaries(const char* op, const std::optional<Tensor>& boundaries, const TopKLayout& layout) {
  if (!boundaries) return;
  STD_TORCH_CHECK(boundaries->scalar_type() == ScalarType::UInt16 && boundaries->is_contiguous(), op,
                  ": Parameter `boundaries` should be contiguous and uint16.", found(*boundaries));
  check_shape(op, "boundaries", *boundaries, {layout.blocks, layout.tiles() - 1, layout.rank});
}

inline TopKLayout check_topk_dot(const Tensor& values, const Tensor& indices, const Tensor& vectors,
                                 int64_t block_size) {
  check_rows("topk_dot", "vectors", vectors);
  return check_entries("topk_dot", values, indices, vectors.size(1), block_size);
}

inline TopKLayout check_topk_combine(const Tensor& out, const Tensor& values, const Tensor& indices,
                                     const Tensor& coefficients, int64_t block_size,
                                     const std::optional<Tensor>& boundaries) {
  constexpr const char* op = "topk_combine_";
  check_rows(op, "out", out);
  check_dense_f64(op, "coefficients", coefficients);
  const TopKLayout layout = check_entries(op, values, indices, out.size(1), block_size);
  check_shape(op, "coefficients", coefficients, {out.size(0), layout.rank});
  check_boundaries(op, boundaries, layout);
  STD_TORCH_CHECK(out.size(0) <= 1 || out.stride(0) >= layout.dim, op,
                  ": Parameter `out` should have rows that do not overlap.", found(out));
  return layout;
}

inline TopKLayout check_topk_descend(const DescentArguments& descent, const Tensor& values, const Tensor& indices,
                                     int64_t newest, int64_t dim, int64_t block_size,
                                     const std::optional<Tensor>& boundaries) {
  constexpr const char* op = "topk_descend_";
  const TopKLayout layout = check_entries(op, values, indices, dim, block_size);
  check_descent(op, descent, layout.rank, dim);
  check_boundaries(op, boundaries, layout);
  STD_TORCH_CHECK(newest >= 0 && newest < layout.rank, op, ": Parameter `newest` should be in [0, ", layout.rank,
                  "). Found ", newest, ".");
  return layout;
}

inline TopKLayout check_topk_push(const Tensor& values, const Tensor& indices, const Tensor& error, int64_t row,
                                  const Tensor& gradient, int64_t block_size, const std::optional<Tensor>& boundaries) {
  constexpr const char* op = "topk_push_";
  STD_TORCH_CHECK(is_float(gradient) || is_double(gradient), op, ": Parameter `gradient` should be float32 or float64.",
                  found(gradient));
  STD_TORCH_CHECK(gradient.dim() == 1 && gradient.is_contiguous(), op,
                  ": Parameter `gradient` should be a contiguous vector.", found(gradient));
  STD_TORCH_CHECK(error.scalar_type() == gradient.scalar_type() && error.is_contiguous(), op,
                  ": Parameter `error` should be contiguous and of the gradient's dtype.", found(error));
  const TopKLayout layout = check_entries(op, values, indices, gradient.size(0), block_size);
  check_shape(op, "error", error, {layout.dim});
  check_boundaries(op, boundaries, layout);
  STD_TORCH_CHECK(row >= 0 && row < layout.rank, op, ": Parameter `row` should be in [0, ", layout.rank, "). Found ",
                  row, ".");
  return layout;
}

}  // namespace mfac
