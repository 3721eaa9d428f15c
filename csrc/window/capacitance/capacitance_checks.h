// What capacitance_replace_ and capacitance_solve ask of their arguments, on every device.
#pragma once

#include "common/adapter.h"

namespace mfac {

inline void check_square(const char* op, const char* name, const Tensor& t) {
  check_dense_f64(op, name, t);
  STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == t.size(1), op, ": Parameter `", name, "` should be square.", found(t));
}

// Both matrices of the capacitance; m.
inline int64_t check_pair(const char* op, const Tensor& inverse, const Tensor& gram) {
  check_square(op, "inverse", inverse);
  check_square(op, "gram", gram);
  check_size(op, "gram", gram.size(0), inverse.size(0));
  return inverse.size(0);
}

inline int64_t check_capacitance_replace(const Tensor& inverse, const Tensor& gram, int64_t row,
                                         const Tensor& products) {
  constexpr const char* op = "capacitance_replace_";
  const int64_t m = check_pair(op, inverse, gram);
  check_dense_f64(op, "products", products);
  check_shape(op, "products", products, {m});
  STD_TORCH_CHECK(row >= 0 && row < m, op, ": Parameter `row` should be in [0, ", m, "). Found ", row, ".");
  return m;
}

inline int64_t check_capacitance_solve(const Tensor& inverse, const Tensor& gram, const Tensor& vectors) {
  constexpr const char* op = "capacitance_solve";
  const int64_t m = check_pair(op, inverse, gram);
  check_dense_f64(op, "vectors", vectors);
  check_matrix(op, "vectors", vectors);
  check_size(op, "vectors", vectors.size(1), m);
  return m;
}

}  // namespace mfac
