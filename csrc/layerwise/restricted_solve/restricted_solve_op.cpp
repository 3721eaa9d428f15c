// restricted_solve(matrix, target, kept) -> for every row the solution of the equations of the
// columns that it keeps: exact weights on any mask. On a GPU it is made of ATen's batched factors
// (mfac/core/cuda_ops.py).
#include "layerwise/obs_sweep/layerwise_checks.h"

namespace mfac {
namespace {

Tensor restricted_solve_cpu(const Tensor& matrix, const Tensor& target, const Tensor& kept) {
  constexpr const char* op = "restricted_solve";
  check_matrix(op, "target", target);
  const int64_t rows = target.size(0), n = target.size(1);
  check_f64_matrix(op, "matrix", matrix, n, n);
  check_f64_matrix(op, "target", target, rows, n);
  check_bool_matrix(op, "kept", kept, rows, n);
  Tensor result = empty_f64(target, {rows, n});
  const RestrictedSolve problem = {elements<double>(matrix),
                                   matrix.stride(0),
                                   elements<double>(target),
                                   target.stride(0),
                                   elements<bool>(kept),
                                   kept.stride(0),
                                   n,
                                   mutable_elements<double>(result)};
  const RestrictedSolveKernels& table = kernels<RestrictedSolveKernels>();
  int64_t most = 0;
  for (int64_t row = 0; row < rows; ++row) {
    int64_t count = 0;
    for (int64_t j = 0; j < n; ++j) count += problem.kept[row * problem.kept_stride + j];
    most = std::max(most, count);
  }
  parallel_tasks(rows, most * most, [&](int64_t begin, int64_t end) {
    Buffer<double> numbers(table.numbers(most));
    Buffer<int64_t> columns(n);
    for (int64_t row = begin; row < end; ++row) table.solve(problem, row, numbers.data(), columns.data());
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("restricted_solve", TORCH_BOX(&restricted_solve_cpu)); }

}  // namespace mfac
