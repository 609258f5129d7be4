"""An ordinary training script as a user would write it; it knows nothing of Outrider.

Worker processes, a progress bar, evaluation between epochs, checkpoints, resume, Ctrl-C.
"""

import argparse
import hashlib
import json
import os
import signal
import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm


def parse():
    """Reads the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--checkpoint", default="")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--fail", choices=["", "error", "interrupt", "exit"], default="")
    return parser.parse_args()


def load():
    """Returns training and test sets of the digits."""
    data = load_digits()
    images = torch.tensor(data.images / 16.0, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(data.target)
    return TensorDataset(images[:640], labels[:640]), TensorDataset(images[640:896], labels[640:896])


def fail(how):
    """Ends the script in mid-training."""
    if how == "error":
        raise RuntimeError("something went wrong in the training loop")
    if how == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    if how == "exit":
        sys.exit(7)


def digest(model, optimizer):
    """A short name for every bit of model and optimizer."""
    sha = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha.update(name.encode() + tensor.numpy().tobytes())
    for state in optimizer.state_dict()["state"].values():
        for tensor in state.values():
            sha.update(tensor.numpy().tobytes())
    sha.update(torch.get_rng_state().numpy().tobytes())
    return sha.hexdigest()


def main():
    """Trains, evaluates, saves, and prints one JSON line at the end."""
    args = parse()
    train_set, test_set = load()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(512, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    first_epoch = 0
    if args.resume:
        saved = torch.load(args.checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        first_epoch = saved["epoch"] + 1
    losses, accuracies = [], []
    for epoch in range(first_epoch, args.epochs):
        model.train()
        loader = DataLoader(train_set, batch_size=16, shuffle=True, num_workers=args.workers)
        for count, (images, labels) in enumerate(tqdm(loader, disable=None)):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            if count % 10 == 0:
                losses.append(loss.item())
            if count == 25 and epoch == 0:
                fail(args.fail)
        scheduler.step()
        model.eval()
        with torch.no_grad():
            hits = sum((model(x).argmax(1) == y).sum().item() for x, y in DataLoader(test_set, batch_size=64))
        accuracies.append(hits / len(test_set))
        if args.checkpoint:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"scheduler": scheduler.state_dict(), "epoch": epoch}, args.checkpoint)
    print(json.dumps({"losses": losses, "accuracies": accuracies, "digest": digest(model, optimizer)}))


if __name__ == "__main__":
    main()
