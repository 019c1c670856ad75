// Includes PYVAE_KERNELS in PYVAE_NAMESPACE::avx512 and PYVAE_NAMESPACE::avx2, each compiled for its instruction set.

#ifdef PYVAE_INSTRUCTION_SETS
#define PYVAE_LANES 16
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
namespace PYVAE_NAMESPACE::avx512 {
#include PYVAE_KERNELS
}
#pragma GCC pop_options
#undef PYVAE_LANES

#define PYVAE_LANES 8
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace PYVAE_NAMESPACE::avx2 {
#include PYVAE_KERNELS
}
#pragma GCC pop_options
#undef PYVAE_LANES
#endif
