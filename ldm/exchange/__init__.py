"""Weights of others: foreign files and folders as bundles, and bundles as what others read.

| input             | module                                     | result                                    |
|-------------------|--------------------------------------------|-------------------------------------------|
| what was typed    | hub                                        | a path on this machine                    |
| a file            | weights, pickles                           | names and shapes of tensors, then tensors |
| what it is        | importing, kinds                           | the reader that takes it, or a refusal    |
| what it holds     | diffusers_folder, single_file, clip_import | networks of ours, and rules for the names |
| what it says      | declared                                   | process, latents, size, text encoder      |
| what was asked    | settling                                   | an architecture on which both agree       |
| all of these      | imported, keymap                           | the contents of a bundle                  |
| a bundle          | exporting, onnx                            | a folder, a file, graphs                  |
| what has no place | record                                     | kept in the exported files, and restored  |

`dialects` has the tables of names and configs of each library, in both directions.
"""
