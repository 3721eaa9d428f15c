// obs_saliency(weights, inverse_diagonal) -> w²/(2 (F⁻¹)_pp): one pass, bound by memory with the
// compiler's own vectors.
#include "pruning/obs_saliency/obs_saliency_checks.h"

namespace mfac {
namespace {

constexpr int64_t kSaliencyColumns = 8192;  // of a task

template <typename T, typename D>
void saliencies(const T* weights, const D* diagonal, int64_t begin, int64_t end, double* out) {
  for (int64_t p = begin; p < end; ++p) out[p] = double(weights[p]) * double(weights[p]) / (2 * double(diagonal[p]));
}

Tensor obs_saliency_cpu(const Tensor& weights, const Tensor& inverse_diagonal) {
  check_obs_saliency(weights, inverse_diagonal);
  const int64_t d = weights.size(0);
  Tensor out = empty_f64(weights, {d});
  double* rho = mutable_elements<double>(out);
  dispatch_float(weights, [&](auto* type) {
    dispatch_float(inverse_diagonal, [&](auto* diagonal_type) {
      const auto* w = elements<element_t<decltype(type)>>(weights);
      const auto* diagonal = elements<element_t<decltype(diagonal_type)>>(inverse_diagonal);
      parallel_tasks(ceil_div(d, kSaliencyColumns), kSaliencyColumns, [&](int64_t begin, int64_t end) {
        saliencies(w, diagonal, begin * kSaliencyColumns, std::min(d, end * kSaliencyColumns), rho);
      });
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("obs_saliency", TORCH_BOX(&obs_saliency_cpu)); }

}  // namespace mfac
