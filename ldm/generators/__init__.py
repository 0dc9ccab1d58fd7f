"""Systems that generate pictures from prompts: what each must offer, and how a bundle becomes one."""
