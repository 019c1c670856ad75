#pragma once

// A function compiled for AVX-512, for AVX2 and FMA, and for the base; the loader takes the best that the machine has.
// Names of single processors instead of these levels would fall to the base on every other make.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PYVAE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PYVAE_CLONES
#endif
