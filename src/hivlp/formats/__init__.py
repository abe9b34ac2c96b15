"""Model folders as people have them: one file a format, each of which makes an encoder's files of a folder."""
