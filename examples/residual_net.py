"""Builds a residual network from the package's blocks, freezes the first ones, and trains the rest in a loop.

    python examples/residual_net.py

Expected: a loss below 0.1 in a few seconds; chance is 1.39.
"""

import torch

import flowers_torch as ft

first = [torch.nn.Conv2d(3, 16, 3, padding=1), ft.ConvolutionalBlock(16, 3, (8, 8, 32), stride=2)]
last = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(32, 4)]
network = torch.nn.Sequential(*first, ft.IdentityBlock(32, 3, (8, 8, 32)), *last)
ft.apply_rules(network, ft.rules_for(network, "2"))  # the block "2" and everything behind it train
optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
ft.set_train_mode(network)  # batch norm of frozen layers stays in inference mode
for labels in (torch.arange(32) % 4).repeat(100, 1):  # every class but the last is brighter in one channel
    images = torch.randn(32, 3, 16, 16) + torch.nn.functional.one_hot(labels, 4)[:, :3, None, None]
    loss = torch.nn.functional.cross_entropy(network(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(f"loss after 100 steps: {loss.item():.3f}")
