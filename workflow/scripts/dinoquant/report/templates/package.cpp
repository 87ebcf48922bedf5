/* Print a photograph's features, with the libtorch of an installed PyTorch: the very one that compiled the package, see
   CARD. pixels.bin is the photograph as the model takes it: float32 [3, S, S], normalised. The
   package takes 1 to 4096 images at a time, and does not check their size.

TORCH=$(python -c "import torch; print(torch.__path__[0])")
g++ -std=c++20 results/recommended/DEVICE.cpp -o features \
  -I$TORCH/include -L$TORCH/lib -Wl,-rpath,$TORCH/lib,--no-as-needed -ltorch -ltorch_cpu -lc10
python results/recommended/DEVICE.py photograph.jpg pixels.bin && ./features pixels.bin
*/
#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cmath>
#include <filesystem>
#include <iostream>

int main(int, char** arguments) {
  torch::inductor::AOTIModelPackageLoader model("FILE");
  int64_t numbers = std::filesystem::file_size(arguments[1]) / sizeof(float), side = std::sqrt(numbers / 3);
  at::Tensor image = at::from_file(arguments[1], false, numbers, at::kFloat).view({1, 3, side, side});
  at::Tensor features = model.run({image})[0][0].flatten();
  for (int64_t i = 0; i < features.numel(); i++) std::cout << features[i].item<float>() << ' ';
  std::cout << '\n';
}
