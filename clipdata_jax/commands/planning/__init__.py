"""What `plan` says of each command, from its options and the sizes of its inputs."""
