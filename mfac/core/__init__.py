"""What every room stands on: operators and their fakes, devices, checks of arguments."""
