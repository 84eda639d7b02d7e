"""Train a network on a distilled set in plain PyTorch: python train_on_a_set.py SET PREPARED."""

import sys

import torch

import teddy

data = teddy.load(sys.argv[1])  # a bundle, or data/distilled/digits/main/ipc10/plus
network = data.network(seed=0)  # or any network that takes such images
loader = data.loader()  # or of any batch size
optimizer = torch.optim.AdamW(network.parameters(), lr=data.recipe.evaluate.optimizer.lr)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(loader))
for epoch in loader:
    for inputs, targets in epoch:  # views, and what the teachers say of each of them
        optimizer.zero_grad()
        loader.loss(network(inputs), targets).backward()
        optimizer.step()
    schedule.step()
print(f"{teddy.accuracy(network.eval(), sys.argv[2], data):.1f} %")  # data/prepared/digits
