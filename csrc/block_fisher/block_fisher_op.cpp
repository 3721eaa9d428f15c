// The block-diagonal Fisher: one task a block, start to end in one thread's cache. A block of B columns is
// dual where m < B and primal where m >= B; the last block may be narrower and of the other form.
#include "adapter.h"
#include "huge_pages.h"

namespace mfac {
namespace {

struct Blocks {
  int64_t rank, dim, block_size;
  int64_t count() const { return ceil_div(dim, block_size); }
  int64_t order() const { return std::min(rank, block_size); }  // of the largest factor
  int64_t begin(int64_t b) const { return b * block_size; }
  int64_t cols(int64_t b) const { return std::min(block_size, dim - begin(b)); }
  int64_t order(int64_t b) const { return std::min(rank, cols(b)); }
  // Doubles that factoring a block may use: its matrix and, packed, a tile of a dual block or all of a primal one.
  int64_t factor_scratch() const {
    const int64_t panel = static_kernels<double, double>().gram.panel_rows, size = ceil_div(order(), panel) * panel;
    return size * (size + std::max(kBlockTileColumns, rank));
  }
  // Doubles that its diagonal may use: a panel of columns.
  int64_t diagonal_scratch() const { return order() * static_kernels<double, double>().whiten.panel_columns; }
  BlockForm form(int64_t b) const { return rank < cols(b) ? BlockForm::kDual : BlockForm::kPrimal; }
};

// Calls f(block number, Block) for every block on all threads; each thread has scratch of `scratch` doubles.
template <typename T, typename F>
void for_each_block(const Tensor& window, const Blocks& blocks, double* factors, double damping, double num_terms,
                    int64_t scratch, int64_t work, const F& f) {
  const T* data = window.const_data_ptr<T>();
  parallel_tasks(blocks.count(), work, [&](int64_t begin, int64_t end) {
    Buffer<double> buffer(scratch);
    for (int64_t b = begin; b < end; ++b) {
      double* factor = factors == nullptr ? nullptr : factors + b * blocks.order() * blocks.order();
      f(b, Block<T>{data + blocks.begin(b), window.stride(0), blocks.rank, blocks.cols(b), damping, num_terms,
                    blocks.form(b), factor, blocks.order(), buffer.data()});
    }
  });
}

Blocks check_blocks(const char* op, const Tensor& window, int64_t block_size) {
  check_rows(op, "window", window);
  STD_TORCH_CHECK(block_size >= 1, op, ": Parameter `block_size` should be >= 1. Found ", block_size, ".");
  return {window.size(0), window.size(1), std::min(block_size, std::max<int64_t>(1, window.size(1)))};
}

double* check_factors(const char* op, const Tensor& factors, const Blocks& blocks) {
  check_dense_f64(op, "factors", factors);
  check_shape(op, "factors", factors, {blocks.count(), blocks.order(), blocks.order()});
  return const_cast<double*>(factors.const_data_ptr<double>());  // read only by the three products below
}

std::tuple<Tensor, Tensor> block_factor_cpu(const Tensor& window, int64_t block_size, double damping,
                                            double num_terms) {
  const Blocks blocks = check_blocks("block_factor", window, block_size);
  const int64_t count = blocks.count(), order = blocks.order();
  Tensor factors = empty_f64(window, {count, order, order});
  Tensor info = torch::stable::new_empty(window, {count}, ScalarType::Long);
  double* factor = factors.mutable_data_ptr<double>();
  prefer_huge_pages(factor, sizeof(double) * factors.numel());
  int64_t* failed = info.mutable_data_ptr<int64_t>();
  dispatch_float(window, [&](auto* type) {
    using T = element_t<decltype(type)>;
    for_each_block<T>(window, blocks, factor, damping, num_terms, blocks.factor_scratch(),
                      blocks.rank * blocks.block_size * order, [&](int64_t b, const Block<T>& block) {
                        if (blocks.order(b) < order) std::fill(block.factor, block.factor + order * order, 0.0);
                        failed[b] = kernels_for<T>().block_factor(block);
                      });
  });
  return {factors, info};
}

// out [k, d] <- kernel(block, vector) for every block and every one of the vectors [k, d]; `kernel` is that member of
// TypedKernels.
template <typename Kernel>
Tensor map_vectors(const char* op, const Tensor& window, double* factors, const Tensor& vectors, const Blocks& blocks,
                   double damping, double num_terms, const Kernel& kernel) {
  check_dense_f64(op, "vectors", vectors);
  STD_TORCH_CHECK(vectors.dim() == 2, op, ": Parameter `vectors` should be a matrix.");
  check_size(op, "vectors", vectors.size(1), blocks.dim);
  const int64_t k = vectors.size(0), d = blocks.dim;
  Tensor out = empty_f64(vectors, {k, d});
  const double* v = vectors.const_data_ptr<double>();
  double* x = out.mutable_data_ptr<double>();
  dispatch_float(window, [&](auto* type) {
    using T = element_t<decltype(type)>;
    for_each_block<T>(window, blocks, factors, damping, num_terms, blocks.rank, k * blocks.rank * blocks.block_size,
                      [&](int64_t b, const Block<T>& block) {
                        for (int64_t i = 0; i < k; ++i)
                          kernel(kernels_for<T>())(block, v + i * d + blocks.begin(b), x + i * d + blocks.begin(b));
                      });
  });
  return out;
}

Tensor block_ihvp_cpu(const Tensor& window, const Tensor& factors, const Tensor& vectors, int64_t block_size,
                      double damping, double num_terms) {
  const Blocks blocks = check_blocks("block_ihvp", window, block_size);
  double* factor = check_factors("block_ihvp", factors, blocks);
  return map_vectors("block_ihvp", window, factor, vectors, blocks, damping, num_terms,
                     [](const auto& table) { return table.block_ihvp; });
}

Tensor block_matvec_cpu(const Tensor& window, const Tensor& vectors, int64_t block_size, double damping,
                        double num_terms) {
  const Blocks blocks = check_blocks("block_matvec", window, block_size);
  return map_vectors("block_matvec", window, nullptr, vectors, blocks, damping, num_terms,
                     [](const auto& table) { return table.block_matvec; });
}

Tensor block_inverse_diagonal_cpu(const Tensor& window, const Tensor& factors, int64_t block_size, double damping,
                                  double num_terms) {
  const Blocks blocks = check_blocks("block_inverse_diagonal", window, block_size);
  double* factor = check_factors("block_inverse_diagonal", factors, blocks);
  Tensor out = empty_f64(window, {blocks.dim});
  double* x = out.mutable_data_ptr<double>();
  const int64_t work = blocks.order() * blocks.order() * blocks.block_size;
  dispatch_float(window, [&](auto* type) {
    using T = element_t<decltype(type)>;
    for_each_block<T>(
        window, blocks, factor, damping, num_terms, blocks.diagonal_scratch(), work,
        [&](int64_t b, const Block<T>& block) { kernels_for<T>().block_inverse_diagonal(block, x + blocks.begin(b)); });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) {
  m.impl("block_factor", TORCH_BOX(&block_factor_cpu));
  m.impl("block_ihvp", TORCH_BOX(&block_ihvp_cpu));
  m.impl("block_matvec", TORCH_BOX(&block_matvec_cpu));
  m.impl("block_inverse_diagonal", TORCH_BOX(&block_inverse_diagonal_cpu));
}

}  // namespace mfac
