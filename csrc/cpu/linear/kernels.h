// All of a linear layer's.

#include "../convolution/lanes.h"
#include "../convolution/product.h"
#include "multiply.h"
