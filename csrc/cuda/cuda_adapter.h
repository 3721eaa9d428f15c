// What every torch adapter of a CUDA twin shares: one device for all tensors, its current stream,
// launch errors, and registration. The launchers below it know no torch.
//
// In the tests the same adapters run on tensors of the CPU, as torch.ops.mfac_emulated
// (MFAC_EMULATED), with launchers that execute their kernels there.
#pragma once

#include "common/adapter.h"

#if defined(MFAC_EMULATED)
#define MFAC_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(mfac_emulated, CPU, m)
#else
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#define MFAC_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(mfac, CUDA, m)
#endif

namespace mfac::cuda {

// The text of a launch's error (runtime.cu).
const char* error_text(int error);

// Makes the device of an op's first tensor the current one and holds its current stream while the
// op runs.
class Device {
 public:
  Device(const char* op, const Tensor& first)
      : op_(op),
#if !defined(MFAC_EMULATED)
        guard_(first.get_device_index()),
#endif
        index_(first.get_device_index()),
        is_cpu_(first.is_cpu()) {
  }

  void check_same(const char* name, const Tensor& t) const {
    STD_TORCH_CHECK(t.get_device_index() == index_ && t.is_cpu() == is_cpu_, op_, ": Parameter `", name,
                    "` should be on the device of the others, ", is_cpu_ ? "cpu" : "cuda", " ", index_, ". Found ",
                    t.is_cpu() ? "cpu" : "cuda", " ", t.get_device_index(), ".");
  }
  void check_same(const char* name, const std::optional<Tensor>& t) const {
    if (t) check_same(name, *t);
  }

  void* stream() const {
#if defined(MFAC_EMULATED)
    return nullptr;
#else
    // A function of torch's CUDA library, which torch has loaded where there are CUDA tensors, for
    // itself alone: its symbols are not among the process's.
    using CurrentStream = int32_t (*)(int32_t, void**);
    static const auto current_stream = reinterpret_cast<CurrentStream>(
        dlsym(dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD), "aoti_torch_get_current_cuda_stream"));
    void* stream = nullptr;
    STD_TORCH_CHECK(current_stream != nullptr && current_stream(index_, &stream) == 0, op_,
                    ": torch gives no CUDA stream.");
    return stream;
#endif
  }

  void check_launch(int error) const { STD_TORCH_CHECK(error == 0, op_, ": CUDA error: ", error_text(error)); }

 private:
  const char* op_;
#if !defined(MFAC_EMULATED)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  int32_t index_;
  bool is_cpu_;
};

}  // namespace mfac::cuda
