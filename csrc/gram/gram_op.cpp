// gram(window) -> G Gᵀ in float64.
//
// Column tiles are packed once (all threads), then every pair of panels of the lower triangle is
// accumulated (all threads). Work is split by pairs, never by columns, so the sum's order and so its last bit
// do not depend on the number of threads. Flops: m²d, half of a general product. Extra memory: m·kTileColumns
// float64.
#include "adapter.h"

namespace mfac {
namespace {

constexpr int64_t kTileColumns = 1536;  // packed at a time: with m = 256, 3 MiB
constexpr int64_t kDepth = 192;         // columns of a panel that a register tile sweeps: both panels in L1

template <typename T>
void accumulate(const T* window, int64_t stride, int64_t m, int64_t d, double* gram) {
  const Kernels& kernel = kernels();
  const int64_t panel_rows = kernel.gram_panel_rows;
  const int64_t panels = ceil_div(m, panel_rows), pairs = panels * (panels + 1) / 2;
  std::vector<double> packed(panels * panel_rows * std::min(kTileColumns, d));
  std::vector<std::pair<int64_t, int64_t>> pair_of;
  for (int64_t p = 0; p < panels; ++p)
    for (int64_t q = 0; q <= p; ++q) pair_of.emplace_back(p, q);

  for (int64_t tile = 0; tile < d; tile += kTileColumns) {
    const int64_t cols = std::min(kTileColumns, d - tile);
    const auto panel = [&](int64_t p) { return packed.data() + p * panel_rows * cols; };
    parallel_tasks(panels, panel_rows * cols, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p)
        kernels_for<T>().gram_pack(window + p * panel_rows * stride + tile, stride,
                                   std::min(panel_rows, m - p * panel_rows), cols, panel(p));
    });
    parallel_tasks(pairs, panel_rows * cols, [&](int64_t begin, int64_t end) {
      for (int64_t k = 0; k < cols; k += kDepth)
        for (int64_t t = begin; t < end; ++t) {
          const auto [p, q] = pair_of[t];
          const int64_t i = p * panel_rows, j = q * panel_rows;
          kernel.gram_panels(panel(p) + k * panel_rows, panel(q) + k * panel_rows, std::min(kDepth, cols - k), m - i,
                             m - j, p == q, gram + i * m + j, m);
        }
    });
  }
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < i; ++j) gram[j * m + i] = gram[i * m + j];
}

Tensor gram_cpu(const Tensor& window) {
  check_rows("gram", "window", window);
  const int64_t m = window.size(0), d = window.size(1);
  Tensor gram = empty_f64(window, {m, m});
  double* out = gram.mutable_data_ptr<double>();
  std::fill(out, out + m * m, 0.0);
  dispatch_float(window, [&](auto* type) {
    using T = element_t<decltype(type)>;
    accumulate(window.const_data_ptr<T>(), window.stride(0), m, d, out);
  });
  return gram;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("gram", TORCH_BOX(&gram_cpu)); }

}  // namespace mfac
