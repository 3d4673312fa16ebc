"""The broker's key-value buckets and object stores: claims, snapshots, blobs, the leader lease."""
