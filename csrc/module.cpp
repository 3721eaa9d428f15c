// mfac._C: importing it registers torch.ops.mfac (the other files of this folder) and says how it was built.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/kernels.h"

#define MFAC_STRINGIFY(...) #__VA_ARGS__  // a list of architectures has commas
#define MFAC_VALUE(...) MFAC_STRINGIFY(__VA_ARGS__)

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = compiler();
  info["cplusplus"] = static_cast<long>(__cplusplus);
  info["isas_built"] = py::str(mfac::isas_built()).attr("split")(",");
  info["isa_chosen"] = mfac::kernels().isa;
  info["oldest_torch"] = MFAC_VALUE(MFAC_OLDEST_TORCH);
#ifdef MFAC_CUDA_TOOLKIT
  info["cuda_toolkit"] = MFAC_VALUE(MFAC_CUDA_TOOLKIT);
  info["cuda_architectures"] = py::str(MFAC_VALUE(MFAC_CUDA_ARCHITECTURES)).attr("split")(",");
#else
  info["cuda_toolkit"] = py::none();
  info["cuda_architectures"] = py::list();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled core of mfac.";
  m.def("build_info", &build_info,
        "How this extension was built: compiler, C++ standard, CPU instruction sets built and the one chosen on this "
        "machine, oldest torch it loads under, CUDA toolkit and architectures (None and [] without).");
}
