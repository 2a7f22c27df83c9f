"""Everything between files on disk and arrays: media, the prepared form, verification, caches."""
