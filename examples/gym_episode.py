"""One episode of the environment under random actions: ``python examples/gym_episode.py``."""

import gymnasium as gym

import lrenv  # noqa: F401  registers the environments

env = gym.make("lrenv/MLP-MNIST-v0", total_steps=200, optimizer="sgd")
env.action_space.seed(0)
observation, info = env.reset(seed=0)
terminated = False
while not terminated:
    action = 0.3 * env.action_space.sample()
    observation, reward, terminated, truncated, info = env.step(action)
print(f"step {info['step']}, train loss {info['train_loss']:.3f}, LR {info['lr']:.2e}")
