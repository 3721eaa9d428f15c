// Kernels by the types that they are compiled for.
#pragma once

#include "common/formats.h"

namespace mfac {

// One struct of kernels for each of several types. A table is made of such lists, and asked by the
// struct's type.
template <typename... Kernels>
struct Instances : Kernels... {};

template <template <typename> class Kernels>
using ForVectors = Instances<Kernels<float>, Kernels<double>>;

// Kernels<T, V>: rows of the window in T, vectors in V.
template <template <typename, typename> class Kernels>
using ForFloatWindows =
    Instances<Kernels<float, float>, Kernels<float, double>, Kernels<double, float>, Kernels<double, double>,
              Kernels<bf16, float>, Kernels<bf16, double>, Kernels<f16, float>, Kernels<f16, double>>;

template <template <typename, typename> class Kernels>
using ForWindows = Instances<ForFloatWindows<Kernels>, Kernels<int8_t, float>, Kernels<int8_t, double>>;

}  // namespace mfac
