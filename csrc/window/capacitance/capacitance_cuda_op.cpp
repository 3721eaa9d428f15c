// capacitance_replace_ and capacitance_solve on CUDA tensors.
#include <tuple>

#include "cuda/cuda_adapter.h"
#include "window/capacitance/capacitance_checks.h"
#include "window/capacitance/capacitance_cuda.h"

namespace mfac::cuda {
namespace {

Tensor capacitance_replace_cuda(Tensor inverse, Tensor gram, int64_t row, const Tensor& products, double shift) {
  const int64_t m = check_capacitance_replace(inverse, gram, row, products);
  const Device device("capacitance_replace_", inverse);
  device.check_same("gram", gram);
  device.check_same("products", products);
  Tensor pivot = empty_f64(products, {1}), scratch = empty_f64(products, {TriangleShape{m}.replace_scratch()});
  device.check_launch(capacitance_replace(mutable_elements<double>(inverse), mutable_elements<double>(gram), m, row,
                                          elements<double>(products), shift, mutable_elements<double>(pivot),
                                          mutable_elements<double>(scratch), device.stream()));
  return pivot;
}

std::tuple<Tensor, Tensor> capacitance_solve_cuda(const Tensor& inverse, const Tensor& gram, const Tensor& vectors,
                                                  double shift) {
  const int64_t m = check_capacitance_solve(inverse, gram, vectors), k = vectors.size(0);
  const Device device("capacitance_solve", inverse);
  device.check_same("gram", gram);
  device.check_same("vectors", vectors);
  Tensor solutions = empty_f64(vectors, {k, m}), largest_error = empty_f64(vectors, {1});
  Tensor scratch = empty_f64(vectors, {TriangleShape{m}.solve_scratch(k)});
  device.check_launch(capacitance_solve(elements<double>(inverse), elements<double>(gram), m, shift,
                                        elements<double>(vectors), k, mutable_elements<double>(solutions),
                                        mutable_elements<double>(largest_error), mutable_elements<double>(scratch),
                                        device.stream()));
  return {solutions, largest_error};
}

}  // namespace

MFAC_CUDA_LIBRARY_IMPL(m) {
  m.impl("capacitance_solve", TORCH_BOX(&capacitance_solve_cuda));
  m.impl("capacitance_replace_", TORCH_BOX(&capacitance_replace_cuda));
}

}  // namespace mfac::cuda
