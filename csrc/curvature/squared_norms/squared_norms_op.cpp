// squared_norms(window) -> ‖g_i‖², [m] float64: one pass over the window, in window_dot's tasks. Not finite if and only
// if an entry is not, or if it overflows.
#include "curvature/squared_norms/squared_norms.h"

namespace mfac {
namespace {

Tensor squared_norms_cpu(const Tensor& window) {
  check_rows("squared_norms", "window", window);
  Tensor norms = empty_f64(window, {window.size(0)});
  dispatch_float(window, [&](auto* type) {
    squared_norms(elements<element_t<decltype(type)>>(window), window.stride(0), window.size(0), window.size(1),
                  norms.mutable_data_ptr<double>());
  });
  return norms;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("squared_norms", TORCH_BOX(&squared_norms_cpu)); }

}  // namespace mfac
