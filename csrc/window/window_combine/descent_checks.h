// The checks of the ops that move weights, on every device.
#pragma once

#include "common/adapter.h"
#include "window/window_combine/descent.h"

namespace mfac {

// The arguments of an op that moves weights, as its schema has them.
struct DescentArguments {
  const std::vector<Tensor>& parameters;
  const std::optional<Tensor>& average;
  const Tensor& coefficients;
  double beta, momentum;
  const std::vector<int64_t>& columns;
  const std::vector<double>&rates, &decays;
};

inline void check_descent(const char* op, const DescentArguments& descent, int64_t rank, int64_t dim) {
  const std::vector<Tensor>& parameters = descent.parameters;
  check_dense_f64(op, "coefficients", descent.coefficients);
  check_shape(op, "coefficients", descent.coefficients, {1, rank});
  STD_TORCH_CHECK(!parameters.empty(), op, ": Parameter `parameters` should hold a tensor. Found none.");
  const int64_t count = int64_t(parameters.size());
  check_size(op, "columns", int64_t(descent.columns.size()), count);
  check_size(op, "rates", int64_t(descent.rates.size()), count);
  check_size(op, "decays", int64_t(descent.decays.size()), count);
  const ScalarType type = parameters[0].scalar_type();
  int64_t end = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Tensor& p = parameters[i];
    STD_TORCH_CHECK((is_float(p) || is_double(p)) && p.scalar_type() == type && p.is_contiguous(), op,
                    ": Parameter `parameters` should be contiguous, all float32 or all float64.", found(p));
    STD_TORCH_CHECK(descent.columns[i] >= end && p.numel() <= dim - descent.columns[i], op,
                    ": Parameter `columns` should give every parameter columns of its own, ascending, within the ", dim,
                    " of the window. Found ", descent.columns[i], " for number ", i, ".");
    end = descent.columns[i] + p.numel();
  }
  if (!descent.average) return;
  STD_TORCH_CHECK(descent.average->scalar_type() == type && descent.average->is_contiguous(), op,
                  ": Parameter `average` should be contiguous and of the parameters' dtype.", found(*descent.average));
  check_shape(op, "average", *descent.average, {dim});
}

template <typename V>
DescentPieces<V> pieces_of(const DescentArguments& descent) {
  V* const average = descent.average ? mutable_elements<V>(*descent.average) : nullptr;
  DescentPieces<V> result{average, descent.beta, descent.momentum, {}};
  for (std::size_t i = 0; i < descent.parameters.size(); ++i) {
    const Tensor& p = descent.parameters[i];
    const int64_t begin = descent.columns[i];
    if (p.numel() > 0)
      result.pieces.push_back({mutable_elements<V>(p), begin, begin + p.numel(), descent.rates[i], descent.decays[i]});
  }
  return result;
}

// On the CPU: moves the weights of columns [column, column + cols) along move[0, cols).
template <typename V>
void descend(const std::vector<Piece<V>>& pieces, int64_t column, int64_t cols, const V* move) {
  for (const Piece<V>& piece : pieces) {
    const int64_t begin = std::max(piece.begin, column), end = std::min(piece.end, column + cols);
    if (begin < end)
      kernels<DescendKernels<V>>().descend(move + (begin - column), end - begin, piece.rate, piece.decay,
                                           piece.weights + (begin - piece.begin));
  }
}

}  // namespace mfac
