// Whose turn it is, in an order that a test can repeat.
#pragma once
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>

namespace sepconv::cuda_host {

class Schedule {
 public:
  static Schedule from_environment() {
    const char* text = std::getenv("SEPCONV_CUDA_HOST_SCHEDULE");
    const std::string name = text ? text : "forward";
    Schedule schedule;
    if (name == "reverse") {
      schedule.order_ = Order::kReverse;
    } else if (name.starts_with("random:")) {
      schedule.order_ = Order::kRandom;
      schedule.random_.seed(static_cast<unsigned>(std::stoul(name.substr(7))));
    } else if (name != "forward") {
      throw std::runtime_error("SEPCONV_CUDA_HOST_SCHEDULE must be forward, reverse or random:SEED, got " +
                               name);
    }
    return schedule;
  }

  // One of the bits that are set.
  int pick_lane(uint32_t ready) { return pick(ready); }

  // A warp keeps its turn for a while: were it drawn anew each time, all would advance at the same pace, and
  // nobody would meet a barrier that is missing.
  int pick_warp(uint32_t ready) {
    if (order_ == Order::kRandom && ready >> warp_ & 1 && random_() % kTurns != 0) return warp_;
    return warp_ = pick(ready);
  }

  // The i-th of `count` blocks to run.
  int64_t block(int64_t i, int64_t count) {
    if (order_ == Order::kRandom && i == 0) first_block_ = random_() % count;
    return order_ == Order::kReverse ? count - 1 - i : (first_block_ + i) % count;
  }

 private:
  enum class Order { kForward, kReverse, kRandom };
  static constexpr int kTurns = 64;

  int pick(uint32_t ready) {
    if (order_ == Order::kForward) return std::countr_zero(ready);
    if (order_ == Order::kReverse) return 31 - std::countl_zero(ready);
    const int shift = random_() % 32;
    return (std::countr_zero(std::rotr(ready, shift)) + shift) % 32;
  }

  Order order_ = Order::kForward;
  std::minstd_rand random_;
  int warp_ = 0;
  int64_t first_block_ = 0;
};

}  // namespace sepconv::cuda_host
